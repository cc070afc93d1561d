"""A few steps of a program, eager or compiled, in any precision."""

from contextlib import AbstractContextManager
from functools import partial
from unittest import mock

import torch
from torch import Tensor
from torch._dynamo.utils import counters

import backbones.tree as tree
from backbones import optim
from backbones.augment import make_normalize
from backbones.experiment import Experiment, Program
from backbones.train_step import TrainState
from backbones.types import Metrics


def images_in(dtype: torch.dtype) -> AbstractContextManager[object]:
    """Within the block, experiments normalize their images to `dtype`."""

    def normalize_in_dtype(mean, std, device):
        normalize = make_normalize(mean, std, device)
        shift, scale = (torch.tensor(values, dtype=dtype)[:, None, None] for values in (mean, std))
        return normalize if dtype == torch.float32 else lambda images: (images.to(dtype) - shift) / scale

    return mock.patch("backbones.experiment.make_normalize", normalize_in_dtype)


def make_program(experiment: Experiment, dtype: torch.dtype = torch.float32) -> Program:
    """The program of an experiment, with images and every floating leaf of its state in `dtype`."""
    with images_in(dtype):
        program = experiment.make()
    return program._replace(state=tree.map(lambda leaf: leaf.to(dtype) if is_weight(leaf) else leaf, program.state))


def is_weight(leaf: Tensor) -> bool:
    """Whether a leaf is floating, and not float64 already as hyperparameters are."""
    return leaf.is_floating_point() and leaf.dtype != torch.float64


def train(
    experiment: Experiment,
    *,
    dtype: torch.dtype = torch.float32,
    num_steps: int = 5,
    change_rate_at: int | None = None,
    backend: str = "aot_eager",
) -> tuple[TrainState, list[Metrics]]:
    """Train for a few steps; at one of them the learning rate in the state is divided by 5."""
    history = []
    with mock.patch("torch.compile", partial(torch.compile, backend=backend)):
        counters.clear()
        program = make_program(experiment, dtype)
        state = program.state
        for step in range(num_steps):
            if step == change_rate_at:
                rates = optim.hyperparams(state.opt_state)
                next(rate for path, rate in rates.items() if path.endswith("base_learning_rate")).mul_(0.2)
            state, metrics = program.train_step(state, program.batches(step))
            history.append(tree.map(torch.clone, metrics))
    return state, history


def losses(history: list[Metrics]) -> list[float]:
    """The loss of each step."""
    return [metrics["loss"].item() for metrics in history]


def num_graphs() -> int:
    """Graphs that were compiled in the last `train`."""
    return counters["stats"]["unique_graphs"]
