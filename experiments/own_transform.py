"""An optimizer of your own: `python train.py digits-resnet18 --optim experiments.own_transform:cautious_sgd`."""

import backbones.tree as tree
from backbones import optim
from backbones.types import OptState, Params, Updates


def cautious_trace(decay: float) -> optim.GradientTransformation:
    """Momentum, but only where it agrees with the gradient (Liang et al., "Cautious optimizers", arXiv 2411.16085)."""

    def update(updates: Updates, momentum: Updates, params: Params) -> tuple[Updates, OptState]:
        momentum = tree.map(lambda g, m: g + decay * m, updates, momentum)
        return tree.map(lambda g, m: m * (g * m > 0), updates, momentum), momentum

    return optim.GradientTransformation(init=tree.zeros_like, update=update)


def cautious_sgd(schedule: optim.Schedule, *, lr: float = 0.05, decay: float = 0.9) -> optim.GradientTransformation:
    """SGD with cautious momentum.

    Args:
        schedule: factor on the learning rate.
        lr: learning rate.
        decay: decay of the momentum, in [0, 1).
    """
    return optim.chain(cautious_trace(decay), optim.scale_by_learning_rate(lr, schedule))
