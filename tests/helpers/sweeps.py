"""Small sweeps over the learning rate and the seed."""

import dataclasses

from helpers.resumed import few_digits, small_resnet

from backbones.component import use
from backbones.experiment import Experiment
from backbones.optim import sgd
from backbones.optim.schedule import cosine
from backbones.run.sweep.axes import parse_axes
from backbones.run.sweep.members import Sweep, make_sweep
from experiments.digits import digits_vit_tiny

VIT = dataclasses.replace(
    digits_vit_tiny,
    data=use(few_digits),
    model=digits_vit_tiny.model.replace(width=16, depth=1, heads=2, mlp_width=32, dropout=0.0),
    optim=use(sgd, lr=0.1),
    schedule=use(cosine, warmup_steps=2),
    steps=12,
    batch_size=16,
    threads=1,
    log_every=2,
    eval_every=3,
    save_every=3,
)
RESNET = dataclasses.replace(VIT, model=use(small_resnet), clip=1.0)


def sweep_over(experiment: Experiment, rates: list[float | str], seeds: list[int], **options: int) -> Sweep:
    axes = parse_axes([["optim.lr", *map(str, rates)], ["seed", *map(str, seeds)]])
    members = [
        (
            {"optim.lr": str(lr), "seed": str(seed)},
            dataclasses.replace(experiment, optim=experiment.optim.replace(lr=float(lr)), seed=seed),
        )
        for lr in rates
        for seed in seeds
    ]
    return make_sweep(experiment, axes, members, **options)
