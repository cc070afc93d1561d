"""The recipes: known optimizers, each one visible chain. p parameter, g gradient, d weight decay, s(t) schedule.

The keyword-only parameters are the fields that `--optim.FIELD` sets.
"""

from collections.abc import Callable

from backbones.optim.base import GradientTransformation
from backbones.optim.combine import chain
from backbones.optim.schedule import Schedule, constant
from backbones.optim.transform import add_decayed_weights, scale_by_adam, scale_by_learning_rate, trace


def sgd(
    schedule: Schedule = constant(),
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 5e-4,
) -> GradientTransformation:
    """Stochastic gradient descent with momentum: m <- momentum m + g + d p; p <- p - lr s(t) m. As `torch.optim.SGD`.

    Args:
        schedule: factor on the learning rate.
        lr: learning rate at its peak.
        momentum: decay of the momentum, in [0, 1).
        nesterov: look ahead along the momentum.
        weight_decay: d, added to the gradient as d p (L2).
    """
    return chain(
        add_decayed_weights(weight_decay),
        trace(momentum, nesterov=nesterov),
        scale_by_learning_rate(lr, schedule),
    )


def adam(
    schedule: Schedule = constant(),
    *,
    lr: float = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> GradientTransformation:
    """Adam with L2: p <- p - lr s(t) adam(g + d p) (Kingma and Ba, arXiv 1412.6980). As `torch.optim.Adam`.

    Args:
        schedule: factor on the learning rate.
        lr: learning rate at its peak.
        b1: decay of the mean of g, in [0, 1).
        b2: decay of the mean of g^2, in [0, 1).
        eps: added to the denominator.
        weight_decay: d, added to the gradient as d p (L2).
    """
    return chain(
        add_decayed_weights(weight_decay),
        scale_by_adam(b1, b2, eps),
        scale_by_learning_rate(lr, schedule),
    )


def adamw(
    schedule: Schedule = constant(),
    *,
    lr: float = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> GradientTransformation:
    """Adam with decoupled decay: p <- p - lr s(t) (adam(g) + d p) (Loshchilov and Hutter, arXiv 1711.05101, alg. 2).

    As `torch.optim.AdamW`.

    Args:
        schedule: factor on the learning rate.
        lr: learning rate at its peak.
        b1: decay of the mean of g, in [0, 1).
        b2: decay of the mean of g^2, in [0, 1).
        eps: added to the denominator.
        weight_decay: d, subtracted from the parameter as lr s(t) d p.
    """
    return chain(
        scale_by_adam(b1, b2, eps),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr, schedule),
    )


OPTIMIZERS: dict[str, Callable[..., GradientTransformation]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
}
