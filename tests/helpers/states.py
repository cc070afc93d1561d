"""A small state with leaves of every dtype, and ways to corrupt a file."""

from collections.abc import Callable
from pathlib import Path

import torch

import backbones.random as random
import backbones.tree as tree
from backbones import optim
from backbones.models.vit import vit_tiny
from backbones.train_step import TrainState, init_train_state


def make_state(
    seed: int = 0, *, width: int = 32, optimizer: optim.GradientTransformation | None = None, step: int = 7
) -> TrainState:
    model = vit_tiny((3, 16, 16), 10, patch_size=8, width=width, depth=1, heads=2, mlp_width=64)
    state = init_train_state(model, optimizer or optim.adam(), seed=seed, device=torch.device("cpu"))
    half = torch.randn(3, generator=random.generator(seed)).bfloat16()
    mixed = {"half": half, "flag": torch.tensor(True), "bytes": torch.arange(3, dtype=torch.uint8)}
    return state._replace(model_state=mixed, step=torch.tensor(step))


def zeros_like(state: TrainState) -> TrainState:
    return tree.map(torch.zeros_like, state)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


CORRUPTIONS: tuple[Callable[[Path], None], ...] = (truncate, flip_a_bit, Path.unlink)
