"""A run against the same run, stopped and resumed: with everything on that could break it."""

import dataclasses
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from runs import without_times

import backbones.distributed as distributed
import train
from backbones.data import Dataset, Split
from backbones.datasets import digits
from backbones.models.resnet import BasicBlock, resnet
from experiments import EXPERIMENTS, Experiment
from experiments.base import DATA, MODEL, make_component


def few_digits(*, crop_padding: int = 1) -> Dataset:
    """100 images to train on: epochs of 6.25 steps."""
    dataset = digits(crop_padding=crop_padding)
    return dataset._replace(
        train=Split(*(leaf[:100] for leaf in dataset.train)), test=Split(*(leaf[:50] for leaf in dataset.test))
    )


FEW_DIGITS = make_component("few-digits", few_digits)
SMALL_RESNET = make_component("small-resnet", partial(resnet, BasicBlock, (1,)))

VIT = dataclasses.replace(
    EXPERIMENTS["digits-vit-tiny"],
    data=FEW_DIGITS(),
    model=MODEL["vit-tiny"](patch_size=8, width=32, depth=1, heads=2, mlp_width=64, dropout=0.1),
    steps=8,
    batch_size=16,
    accumulate=2,
    clip=1.0,
    ema=0.9,
    log_every=1,
    eval_every=3,
    save_every=1,
    keep=100,
)
RESNET = dataclasses.replace(VIT, model=SMALL_RESNET(), optim=EXPERIMENTS["digits-resnet18"].optim)

CASES: dict[str, tuple[Experiment, str | None]] = {
    f"{name}-{precision}-{backend}": (
        dataclasses.replace(experiment, precision=precision, compile="off" if backend == "eager" else "on"),
        None if backend == "eager" else backend,
    )
    for name, experiment in (("vit", VIT), ("resnet", RESNET))
    for precision in ("float32", "bfloat16")
    for backend in ("eager", "aot_eager", "inductor")
}
"""Name -> experiment, and the backend of torch.compile."""


def check_resumed(case: tuple[Experiment, str | None], folder: Path, steps: Sequence[int]) -> None:
    """Raise AssertionError unless a resumed run is the run, by its parameters and every line of its metrics."""
    experiment, backend = case
    with (
        mock.patch.dict(DATA, {"few-digits": FEW_DIGITS}),
        mock.patch.dict(MODEL, {"small-resnet": SMALL_RESNET}),
        mock.patch("torch.compile", partial(torch.compile, backend=backend or "inductor")),
        mock.patch("backbones.loop.STATISTICS_BATCHES", 3),  # for time
    ):
        straight = train.main(experiment, run_dir=folder / "straight")
        for step in steps:
            distributed.on_main(partial(shutil.copytree, folder / "straight", folder / str(step)))
            torch.rand(1000)  # another history
            resumed = train.main(experiment, run_dir=folder / str(step), resume=str(step))
            assert resumed["params_sha256"] == straight["params_sha256"], step
            assert without_times(folder / str(step)) == without_times(folder / "straight"), step
    if distributed.is_main():
        lines = without_times(folder / "straight")
        assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 9))
        assert [line["step"] for line in lines if line["split"] == "test"] == [3, 6, 8]
