from pathlib import Path

import pytest
import torch

import backbones.tree as tree
from backbones import optim
from backbones.checkpoint import Checkpoints, from_arrays, to_arrays
from backbones.models import MODELS
from backbones.train_step import TrainState, init_train_state
from backbones.types import InputError

CPU = torch.device("cpu")


def make_state(seed: int = 0, *, width: int = 32, optimizer: optim.GradientTransformation | None = None) -> TrainState:
    model = MODELS["vit-tiny"]((3, 16, 16), 10, patch_size=8, width=width, depth=1, heads=2, mlp_width=64)
    state = init_train_state(model, optimizer or optim.adam(), seed=seed, device=CPU)
    mixed = {"half": torch.randn(3).bfloat16(), "flag": torch.tensor(True), "bytes": torch.arange(3, dtype=torch.uint8)}
    return state._replace(model_state=mixed, step=state.step + 7)


def zeros_like(state: TrainState) -> TrainState:
    return tree.map(lambda leaf: torch.zeros_like(leaf), state)


def test_arrays_hold_every_bit_of_every_dtype() -> None:
    state = make_state()
    arrays = to_arrays(state)
    assert arrays["model_state/half"].dtype.name == "bfloat16" and arrays["step"] == 7
    restored = from_arrays(arrays, zeros_like(state))
    assert tree.sha256(restored) == tree.sha256(state)
    assert restored.params["patch_embed.weight"].is_contiguous(memory_format=torch.channels_last)


def test_arrays_are_a_snapshot() -> None:
    state = make_state()
    arrays = to_arrays(state)
    state.params["head.bias"].fill_(5)
    assert not arrays["params/head.bias"].any()


def test_save_and_restore_through_the_disk(tmp_path: Path) -> None:
    state = make_state()
    checkpoints = Checkpoints(tmp_path, experiment={"name": "x"}, keep=2)
    checkpoints.save(state, {"top1": 0.5})
    digest = tree.sha256(state)
    tree.map(torch.Tensor.zero_, state.params)  # the step goes on while the disk is written
    checkpoints.close()
    again = Checkpoints(tmp_path, experiment={"name": "x"}, keep=2)
    assert again.latest_step() == 7
    assert tree.sha256(again.restore(zeros_like(make_state()))) == digest
    again.close()


def test_keeps_the_latest_and_the_best_also_after_a_restart(tmp_path: Path) -> None:
    state = make_state()
    for step, top1 in enumerate([0.1, 0.9, 0.2, None, 0.3, 0.4, None], start=1):
        checkpoints = Checkpoints(tmp_path, experiment={}, keep=2)
        checkpoints.save(state._replace(step=torch.tensor(step)), {} if top1 is None else {"top1": top1})
        checkpoints.close()
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()) == [2, 6, 7]


def test_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, experiment={}, keep=2)
    with pytest.raises(InputError, match=r"no checkpoint in .*another --run-dir"):
        checkpoints.restore(make_state())
    checkpoints.close()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"width": 64}, r"params/blocks\.0\.attn\.proj\.bias is float32 \[32\], expected float32 \[64\]"),
        ({"optimizer": optim.sgd()}, r"opt_state/1/decay is missing, expected float64 \[\]"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_whole(other: dict, message: str) -> None:
    like = make_state(1, **other)
    before = tree.sha256(like)
    with pytest.raises(InputError, match=message):
        from_arrays(to_arrays(make_state()), like)
    assert tree.sha256(like) == before
