"""CIFAR-10 in minutes on two CPU cores: the network and the tricks of airbench, composed of the library's parts.
(Keller Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498.)

speedrun-sgd is airbench94 with three differences: 475 steps instead of 476; lookahead averages the parameters only, not
BatchNorm's running statistics; and its decay is that of the step before. speedrun is its variant with Muon, which needs
fewer epochs. On CIFAR-10 (JPEG), in bfloat16 on two cores of an Intel Xeon (AMX), torch 2.14 (docs/experiments.md has a
table and commands):

speedrun  90.73 +- 0.20 % in 7.5 minutes, seeds 0 to 4; airbench94 in turn with it 90.68 +- 0.18 % in 9.7 minutes
"""

import dataclasses
from functools import partial

import torch
from torch import Tensor

from backbones import optim
from backbones.augment import alternating_flip
from backbones.data import cifar10
from backbones.experiment import Experiment, use
from backbones.models.airbench import airbench
from backbones.optim.schedule import join_schedules, linear, triangle


def airbench_sgd(
    schedule: optim.Schedule,
    num_steps: int,
    *,
    lr: float = 1.5,
    momentum: float = 0.85,
    weight_decay: float = 0.00133,
    bias_scale: float = 64.0,
    whiten_fraction: float = 0.3,
) -> optim.GradientTransformation:
    """SGD with Nesterov momentum, higher rates for the biases of norms (section 3.4), and lookahead (section 3.5).

    Args:
        schedule: factor on the learning rate.
        num_steps: length of the run, a multiple of the 5 steps between two updates of the slow parameters.
        lr: learning rate.
        momentum: decay of the momentum.
        weight_decay: d of L2 regularisation, less for biases, so that lr d is the same for all.
        bias_scale: learning rate of the biases of norms, relative to lr.
        whiten_fraction: part of the run in which the bias of the first layer is trained.
    """
    sgd = partial(_sgd, lr=lr, momentum=momentum, weight_decay=weight_decay)
    transforms = {
        "weight": sgd(1.0, schedule),
        "bias": sgd(bias_scale, schedule),
        "whiten": sgd(1.0, _until(whiten_fraction * num_steps, schedule)),
    }
    by_part = optim.partition(transforms, lambda name, leaf: "whiten" if "whiten" in name else name.rpartition(".")[2])

    def slow_step_size(step: Tensor) -> Tensor:
        return 1 - 0.95**5 * (step.to(torch.float64) / num_steps) ** 3

    return optim.inject_hyperparams(optim.lookahead(by_part), slow_step_size=slow_step_size)


def airbench_muon(
    schedule: optim.Schedule,
    num_steps: int,
    *,
    lr: float = 0.17,
    momentum: float = 0.6,
    sgd_lr: float = 0.85,
    bias_scale: float = 64.0,
    weight_decay: float = 0.0024,
    whiten_fraction: float = 0.375,
) -> optim.GradientTransformation:
    """Muon for the filters, whose norms stay as they are, and SGD for the head and the biases.

    The defaults are those of the author's airbench94_muon for the sum of the losses over 2,000 images, turned into
    rates for the mean over 1,024. That of Muon, whose updates do not grow with the batch, is his 0.24 times the root
    of 1,024 / 2,000.

    Args:
        schedule: factor on the learning rates.
        num_steps: length of the run.
        lr: learning rate of Muon: the length of a step, relative to the filters.
        momentum: decay of Muon's momentum.
        sgd_lr: learning rate of the head.
        bias_scale: learning rate of the biases, relative to sgd_lr.
        weight_decay: d of L2 regularisation of the head.
        whiten_fraction: part of the run in which the bias of the first layer is trained; its rate falls to 0 in it.
    """
    sgd = partial(_sgd, lr=sgd_lr, momentum=0.85, weight_decay=weight_decay)
    muon = optim.chain(
        optim.trace(momentum, nesterov=True),
        optim.orthogonalize(),
        optim.scale_by_learning_rate(lr, schedule),
        optim.keep_norm(),
    )
    transforms = {
        "filters": muon,
        "whiten": sgd(bias_scale, linear(round(whiten_fraction * num_steps))),
        "biases": sgd(bias_scale, schedule),
        "head": sgd(1.0, schedule),
    }

    def part(name: str, leaf: Tensor) -> str:
        if leaf.ndim == 1:
            return "whiten" if name.startswith("whiten") else "biases"
        return "head" if name.startswith("head") else "filters"

    return optim.partition(transforms, part)


def _sgd(
    scale: float, schedule: optim.Schedule, *, lr: float, momentum: float, weight_decay: float
) -> optim.GradientTransformation:
    """SGD at `scale` times the rate, with the same decay in each step."""
    return optim.sgd(schedule, lr=scale * lr, momentum=momentum, nesterov=True, weight_decay=weight_decay / scale)


def _until(end: float, schedule: optim.Schedule) -> optim.Schedule:
    """A schedule that is 0 from the step `end` on."""
    return join_schedules([schedule, lambda step: torch.zeros_like(step, dtype=torch.float64)], [round(end)])


speedrun_sgd = Experiment(
    name="speedrun-sgd",
    data=use(cifar10),
    augment=use(alternating_flip, padding=2, reflect=True),
    model=use(airbench),
    optim=use(airbench_sgd),
    schedule=use(triangle),
    label_smoothing=0.2,
    steps=475,  # 9.7 epochs, a multiple of the 5 steps of lookahead: the slow parameters are the last
    batch_size=1024,
    precision="bfloat16",
    tta="flip+shift",
    eval_every=475,
    save_every=475,
)

speedrun = dataclasses.replace(
    speedrun_sgd,
    name="speedrun",
    optim=use(airbench_muon),
    schedule=use(linear),
    steps=380,  # 7.8 epochs
    eval_every=380,
    save_every=380,
)
