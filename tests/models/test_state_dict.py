"""Files of weights as training scripts write them; `torch.save` itself is the oracle."""

import argparse
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from backbones.errors import InputError
from backbones.models.state_dict import read_state_dict, write_state_dict

WEIGHTS = {"conv.weight": torch.ones(2, 3, 1, 1), "conv.bias": torch.zeros(2)}
OTHER = {name: leaf + 1 for name, leaf in WEIGHTS.items()}
OPTIMIZER = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS},
        {"net": WEIGHTS, "acc": 93.1, "epoch": 3},
        {"model": WEIGHTS, "optimizer": OPTIMIZER, "args": argparse.Namespace(lr=0.1, model="resnet18")},
        {"ema": WEIGHTS, "model": OTHER},
        {"state_dict": OTHER, "state_dict_ema": WEIGHTS, "arch": "resnet18", "metric": np.float64(0.5)},
        {"model": OTHER, "model_ema": WEIGHTS},
        {"model_state_dict": WEIGHTS, "optimizer_state_dict": OPTIMIZER, "loss": torch.tensor(0.1)},
        {"state_dict": {"model": WEIGHTS}},
        {"model_ema": None, "ema": {}, "model": WEIGHTS},
        {"model": WEIGHTS, "epoch": np.int64(3), "best": np.float32(0.9), "done": np.bool_(True)},
    ],
    ids=lambda content: "+".join(content),
)
def test_weights_are_found_in_what_surrounds_them(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pth")
    found = read_state_dict(tmp_path / "file.pth")
    assert found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


def test_safetensors(tmp_path: Path) -> None:
    safetensors.torch.save_file(WEIGHTS, tmp_path / "file.safetensors")
    assert torch.equal(read_state_dict(tmp_path / "file.safetensors")["conv.weight"], WEIGHTS["conv.weight"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            nn.Linear(2, 2),
            r"file\.pth holds a pickled torch\.nn\.modules\.linear\.Linear, and reading that would run code",
        ),
        (
            {"model": nn.Linear(2, 2)},
            r"holds a pickled torch\.nn\.modules\.linear\.Linear.*a state dict, into another file",
        ),
        ({"state_dict": WEIGHTS, "path": Path("x")}, r"holds a pickled pathlib"),
        ([WEIGHTS], "wanted a dict of tensors"),
        ({}, "wanted a dict of tensors"),
        ({"conv.weight": [1.0]}, "wanted a dict of tensors"),
        ({"state_dict": {}}, "wanted a dict of tensors"),
    ],
)
def test_other_files_are_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(InputError, match=message):
        read_state_dict(tmp_path / "file.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_written_files_may_be_read_by_whoever_may_read_other_files(suffix: str, tmp_path: Path) -> None:
    path, other = tmp_path / f"weights{suffix}", tmp_path / "other"
    write_state_dict(path, WEIGHTS, {"classes": ["cat", "dog"]})
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode
    assert read_state_dict(path).keys() == WEIGHTS.keys()


def test_numbers_of_numpy_1(tmp_path: Path) -> None:
    """They were pickled by another name."""
    torch.save({"state_dict": WEIGHTS, "acc": np.float64(0.5)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        assert b"numpy._core.multiarray" in new.read("new/data.pkl")
    assert read_state_dict(tmp_path / "old.pth").keys() == WEIGHTS.keys()
