"""A run against the same run, stopped and resumed: with everything on that could break it."""

import dataclasses
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from helpers.poison import Linear
from helpers.runs import without_times

import backbones.distributed as distributed
from backbones.augment import identity
from backbones.component import use
from backbones.data import Dataset, digits
from backbones.experiment import Experiment
from backbones.models.resnet import BasicBlock, resnet
from backbones.ranges import Count
from backbones.run.run import run
from backbones.types import CPU
from experiments.digits import digits_resnet18, digits_vit_tiny

few_steps_of_bn = mock.patch("backbones.evaluation.NUM_BN_BATCHES", 3)
"""For time."""


def few_digits(device: torch.device = CPU, *, size: Count = 16) -> Dataset:
    """100 images to train on: epochs of 6.25 steps."""
    train, test = digits(device, size=size)
    return Dataset(train._replace(labels=train.labels[:100]), test._replace(labels=test.labels[:50]))


small_resnet = partial(resnet, BasicBlock, (1,))

VIT = dataclasses.replace(
    digits_vit_tiny,
    data=use(few_digits),
    model=digits_vit_tiny.model.replace(width=32, depth=1, heads=2, mlp_width=64),
    steps=8,
    batch_size=16,
    accumulate=2,
    clip=1.0,
    ema=0.9,
    log_every=3,
    eval_every=3,
    save_every=1,
    keep=100,
)
RESNET = dataclasses.replace(VIT, model=use(small_resnet), optim=digits_resnet18.optim, log_every=1)
LINEAR = dataclasses.replace(VIT, model=use(Linear, bias=False), augment=use(identity))  # one leaf: compiled fast

CASES: dict[str, tuple[Experiment, str]] = {
    f"{name}-{precision}-{backend}": (
        dataclasses.replace(experiment, precision=precision, compile="off" if backend == "eager" else "on"),
        "inductor" if backend == "eager" else backend,
    )
    for name, experiment in (("vit", VIT), ("resnet", RESNET), ("linear", LINEAR))
    for precision in ("float32", "bfloat16")
    for backend in ("eager", "aot_eager", "inductor")
}
"""Name -> experiment, and the backend of torch.compile."""


def check_resumed(case: tuple[Experiment, str], folder: Path, steps: Sequence[int]) -> None:
    """Raise AssertionError unless a resumed run is the run, by its parameters and every line of its metrics."""
    experiment, backend = case
    parts = distributed.world_size() * experiment.accumulate
    experiment = dataclasses.replace(experiment, batch_size=-(-experiment.batch_size // parts) * parts)
    with mock.patch("torch.compile", partial(torch.compile, backend=backend)), few_steps_of_bn:
        straight = run(experiment, run_dir=folder / "straight")
        for step in steps:
            distributed.on_main(lambda step=step: shutil.copytree(folder / "straight", folder / str(step)) and None)
            torch.rand(1000)  # another history
            resumed = run(experiment, run_dir=folder / str(step), resume=step)
            assert resumed["params_sha256"] == straight["params_sha256"], step
            assert without_times(folder / str(step)) == without_times(folder / "straight"), step
    if distributed.is_main():
        lines = without_times(folder / "straight")
        every = experiment.log_every
        assert [line["step"] for line in lines if line["split"] == "train"] == list(range(every, 9, every))
        assert [line["step"] for line in lines if line["split"] == "test"] == [3, 6, 8]
