"""Every optimizer on the digits, with ResNet-18 as in `digits_resnet18`: 300 steps of 64 images, warm-up and cosine
(but for the schedule-free one). Top-1 of the last step with seed 0, on two cores of an Intel Xeon (AMX), torch 2.14:

digits-resnet18-sgd                  99.45 % after 300 steps
digits-resnet18-adam                 100.00 % after 300 steps
digits-resnet18-adamw                99.45 % after 300 steps
digits-resnet18-nadam                100.00 % after 300 steps
digits-resnet18-radam                99.18 % after 300 steps
digits-resnet18-adabelief            100.00 % after 300 steps
digits-resnet18-rmsprop              100.00 % after 300 steps
digits-resnet18-lion                 99.73 % after 300 steps
digits-resnet18-lamb                 99.73 % after 300 steps
digits-resnet18-lars                 99.45 % after 300 steps
digits-resnet18-adafactor            99.73 % after 300 steps
digits-resnet18-muon                 100.00 % after 300 steps
digits-resnet18-soap                 100.00 % after 300 steps
digits-resnet18-schedule-free-adamw  99.73 % after 300 steps
digits-resnet18-sam-sgd              98.90 % after 300 steps

`python -m benchmarks.optimizers` runs them all; its tables are in docs/optimizers.md.
"""

from dataclasses import replace

from backbones import optim
from backbones.experiment import Experiment, Use, use
from backbones.optim.schedule import constant
from experiments.digits import digits_resnet18


def _with(optimizer: Use, schedule: Use = digits_resnet18.schedule) -> Experiment:
    return replace(digits_resnet18, name=f"digits-resnet18-{optimizer.name}", optim=optimizer, schedule=schedule)


OPTIMIZER_EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        _with(use(optim.sgd, lr=0.05)),
        _with(use(optim.adam, lr=1e-3)),
        _with(use(optim.adamw, lr=1e-3)),
        _with(use(optim.nadam, lr=1e-3)),
        _with(use(optim.radam, lr=1e-3)),
        _with(use(optim.adabelief, lr=1e-3)),
        _with(use(optim.rmsprop, lr=5e-4)),
        _with(use(optim.lion, lr=1e-4)),
        _with(use(optim.lamb, lr=1e-2)),
        _with(use(optim.lars, lr=10.0)),
        _with(use(optim.adafactor, lr=1e-2)),
        _with(use(optim.muon, lr=0.02, adamw_lr=1e-3)),
        _with(use(optim.soap, lr=1e-3)),
        _with(use(optim.schedule_free_adamw, lr=2.5e-3), use(constant, warmup_steps=20)),
        _with(use(optim.sam_sgd, lr=0.05)),
    )
}
