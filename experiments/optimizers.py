"""Every optimizer on the digits, with ResNet-18 as in `digits_resnet18`: 300 steps of 64 images, warm-up and cosine.

`python -m benchmarks.optimizers` runs them all; its table stands in the README.
"""

from dataclasses import replace

from experiments.base import OPTIM, SCHEDULE, Component, Experiment
from experiments.digits import digits_resnet18


def _with(optim: Component, schedule: Component = digits_resnet18.schedule) -> Experiment:
    return replace(digits_resnet18, name=f"digits-resnet18-{optim.name}", optim=optim, schedule=schedule)


OPTIMIZER_EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        _with(OPTIM["sgd"](lr=0.05)),
        _with(OPTIM["adam"](lr=1e-3)),
        _with(OPTIM["adamw"](lr=1e-3)),
        _with(OPTIM["nadam"](lr=1e-3)),
        _with(OPTIM["radam"](lr=1e-3)),
        _with(OPTIM["adabelief"](lr=1e-3)),
        _with(OPTIM["rmsprop"](lr=5e-4)),
        _with(OPTIM["lion"](lr=1e-4)),
        _with(OPTIM["lamb"](lr=1e-2)),
        _with(OPTIM["lars"](lr=10.0)),
        _with(OPTIM["adafactor"](lr=1e-2)),
        _with(OPTIM["muon"](lr=0.02, adamw_lr=1e-3)),
        _with(OPTIM["soap"](lr=1e-3)),
        _with(OPTIM["schedule-free-adamw"](lr=2.5e-3), SCHEDULE["constant"](warmup_steps=20)),
        _with(OPTIM["sam-sgd"](lr=0.05)),
    )
}
