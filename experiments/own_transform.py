"""An optimizer of your own, and a whole run with it: `python -m experiments.own_transform`."""

import sys

import backbones.tree as tree
import train
from backbones import optim
from experiments.base import OPTIM, make_component


def cautious_trace(decay: float) -> optim.GradientTransformation:
    """Momentum, but only where it agrees with the gradient (Liang et al., "Cautious optimizers", arXiv 2411.16085)."""

    def update(updates, momentum, params):
        momentum = tree.map(lambda g, m: g + decay * m, updates, momentum)
        return tree.map(lambda g, m: m * (g * m > 0), updates, momentum), momentum

    return optim.GradientTransformation(init=tree.zeros_like, update=update)


def cautious_sgd(schedule: optim.Schedule, *, lr: float = 0.05, decay: float = 0.9) -> optim.GradientTransformation:
    """SGD with cautious momentum.

    Args:
        schedule: factor on the learning rate.
        lr: learning rate at its peak.
        decay: decay of the momentum, in [0, 1).
    """
    return optim.chain(cautious_trace(decay), optim.scale_by_learning_rate(lr, schedule))


OPTIM["cautious-sgd"] = make_component("cautious-sgd", cautious_sgd)

if __name__ == "__main__":
    train.run(["digits-resnet18", "--optim", "cautious-sgd", *sys.argv[1:]])
