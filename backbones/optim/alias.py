"""The recipes: known optimizers, each one visible chain. p parameter, g gradient, d weight decay, s(t) schedule.

The keyword-only parameters are the fields that `--optim.FIELD` sets; what stands there are the authors' own values, but
for learning rates, which they leave to the task. "Decoupled" decay is -lr s(t) d p, whatever becomes of the gradient.
"""

from collections.abc import Callable

import torch

from backbones.optim.adaptive import (
    scale_by_adafactor,
    scale_by_adam,
    scale_by_belief,
    scale_by_lion,
    scale_by_param_block_rms,
    scale_by_radam,
    scale_by_rms,
    scale_by_trust_ratio,
)
from backbones.optim.average import schedule_free
from backbones.optim.base import GradientTransformation
from backbones.optim.clip import clip_by_block_rms
from backbones.optim.combine import chain, masked, partition
from backbones.optim.label import DECAY_MASKS, DecayMask, is_hidden_matrix, is_matrix
from backbones.optim.orthogonalize import orthogonalize
from backbones.optim.sam import sam
from backbones.optim.schedule import Schedule, constant
from backbones.optim.soap import scale_by_soap
from backbones.optim.transform import add_decayed_weights, scale_by_learning_rate, trace


def sgd(
    schedule: Schedule = constant(),
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 5e-4,
    weight_decay_mask: DecayMask = "all",
) -> GradientTransformation:
    """Stochastic gradient descent with momentum: m <- momentum m + g + d p; p <- p - lr s(t) m. As `torch.optim.SGD`.

    Args:
        schedule: factor on the learning rate.
        lr: learning rate at its peak.
        momentum: decay of the momentum, in [0, 1).
        nesterov: look ahead along the momentum.
        weight_decay: d, added to the gradient as d p (L2).
        weight_decay_mask: what decays: all, or the matrices only.
    """
    return chain(
        add_decayed_weights(weight_decay, DECAY_MASKS[weight_decay_mask]),
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
    weight_decay_mask: DecayMask = "all",
) -> GradientTransformation:
    """Adam with L2: p <- p - lr s(t) adam(g + d p) (Kingma and Ba, arXiv 1412.6980). As `torch.optim.Adam`.

    Args:
        schedule: factor on the learning rate.
        lr: learning rate at its peak.
        b1: decay of the mean of g, in [0, 1).
        b2: decay of the mean of g^2, in [0, 1).
        eps: added to the denominator.
        weight_decay: d, added to the gradient as d p (L2).
        weight_decay_mask: what decays: all, or the matrices only.
    """
    return chain(
        add_decayed_weights(weight_decay, DECAY_MASKS[weight_decay_mask]),
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
    weight_decay_mask: DecayMask = "all",
) -> GradientTransformation:
    """Adam with decoupled decay: p <- p - lr s(t) (adam(g) + d p) (Loshchilov and Hutter, arXiv 1711.05101, alg. 2).

    As `torch.optim.AdamW`.

    Args:
        schedule: factor on the learning rate.
        lr: learning rate at its peak.
        b1: decay of the mean of g, in [0, 1).
        b2: decay of the mean of g^2, in [0, 1).
        eps: added to the denominator.
        weight_decay: d, decoupled.
        weight_decay_mask: what decays: all, or the matrices only.
    """
    return chain(
        scale_by_adam(b1, b2, eps),
        add_decayed_weights(weight_decay, DECAY_MASKS[weight_decay_mask]),
        scale_by_learning_rate(lr, schedule),
    )


def nadam(
    schedule: Schedule = constant(),
    *,
    lr: float = 2e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_decay_mask: DecayMask = "all",
) -> GradientTransformation:
    """Adam with Nesterov's look-ahead (Dozat, "Incorporating Nesterov momentum into Adam", ICLR 2016 workshop).

    As `optax.nadam`, and `optax.nadamw` for the decay, which is decoupled. `torch.optim.NAdam` differs: there b1 warms
    up, by a schedule of its own (its `momentum_decay`).

    Args:
        schedule: factor on the learning rate.
        lr: learning rate at its peak.
        b1: decay of the mean of g, in [0, 1).
        b2: decay of the mean of g^2, in [0, 1).
        eps: added to the denominator.
        weight_decay: d, decoupled.
        weight_decay_mask: what decays: all, or the matrices only.
    """
    return chain(
        scale_by_adam(b1, b2, eps, nesterov=True),
        add_decayed_weights(weight_decay, DECAY_MASKS[weight_decay_mask]),
        scale_by_learning_rate(lr, schedule),
    )


def radam(
    schedule: Schedule = constant(),
    *,
    lr: float = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_decay_mask: DecayMask = "all",
) -> GradientTransformation:
    """Adam whose variance is rectified, which stands in for a warm-up (Liu et al., arXiv 1908.03265, algorithm 2).

    As `optax.radam`. `torch.optim.RAdam` differs in eps, which it adds to the root of nu before nu is made unbiased,
    and in the update where rho is 5 exactly.

    Args:
        schedule: factor on the learning rate.
        lr: learning rate at its peak.
        b1: decay of the mean of g, in [0, 1).
        b2: decay of the mean of g^2, in [0, 1).
        eps: added to the denominator.
        weight_decay: d, decoupled.
        weight_decay_mask: what decays: all, or the matrices only.
    """
    return chain(
        scale_by_radam(b1, b2, eps),
        add_decayed_weights(weight_decay, DECAY_MASKS[weight_decay_mask]),
        scale_by_learning_rate(lr, schedule),
    )


def adabelief(
    schedule: Schedule = constant(),
    *,
    lr: float = 1e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-16,
    weight_decay: float = 0.0,
    weight_decay_mask: DecayMask = "all",
) -> GradientTransformation:
    """Adam by the variance of g around its mean, not around 0 (Zhuang et al., arXiv 2010.07468, algorithm 2).

    As `optax.adabelief`; the decay is decoupled.

    Args:
        schedule: factor on the learning rate.
        lr: learning rate at its peak.
        b1: decay of the mean of g, in [0, 1).
        b2: decay of the mean of (g - mean)^2, in [0, 1).
        eps: added to the denominator, and to the mean of (g - mean)^2.
        weight_decay: d, decoupled.
        weight_decay_mask: what decays: all, or the matrices only.
    """
    return chain(
        scale_by_belief(b1, b2, eps),
        add_decayed_weights(weight_decay, DECAY_MASKS[weight_decay_mask]),
        scale_by_learning_rate(lr, schedule),
    )


def rmsprop(
    schedule: Schedule = constant(),
    *,
    lr: float = 1e-3,
    b2: float = 0.9,
    eps: float = 1e-8,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    weight_decay_mask: DecayMask = "all",
) -> GradientTransformation:
    """RMSProp: nu <- b2 nu + (1 - b2) g^2; m <- momentum m + g / (sqrt(nu) + eps); p <- p - lr s(t) m.

    As `torch.optim.RMSprop` (Tieleman and Hinton, Lecture 6.5, Coursera 2012). `optax.rmsprop` differs in eps, which
    stands under the root there unless asked otherwise, and in that the momentum keeps the rates of its day.

    Args:
        schedule: factor on the learning rate.
        lr: learning rate at its peak.
        b2: decay of the mean of g^2, in [0, 1).
        eps: added to the denominator.
        momentum: decay of the momentum, in [0, 1).
        nesterov: look ahead along the momentum.
        weight_decay: d, added to the gradient as d p (L2).
        weight_decay_mask: what decays: all, or the matrices only.
    """
    return chain(
        add_decayed_weights(weight_decay, DECAY_MASKS[weight_decay_mask]),
        scale_by_rms(b2, eps),
        trace(momentum, nesterov=nesterov),
        scale_by_learning_rate(lr, schedule),
    )


def lion(
    schedule: Schedule = constant(),
    *,
    lr: float = 1e-4,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 1.0,
    weight_decay_mask: DecayMask = "all",
) -> GradientTransformation:
    """Sign of an interpolated momentum, with decoupled decay (Chen et al., arXiv 2302.06675, alg. 2). As `optax.lion`.

    Args:
        schedule: factor on the learning rate.
        lr: learning rate at its peak; 3 to 10 times less than AdamW's.
        b1: share of the momentum in the update, in [0, 1).
        b2: decay of the momentum, in [0, 1).
        weight_decay: d, decoupled; 3 to 10 times more than AdamW's.
        weight_decay_mask: what decays: all, or the matrices only.
    """
    return chain(
        scale_by_lion(b1, b2),
        add_decayed_weights(weight_decay, DECAY_MASKS[weight_decay_mask]),
        scale_by_learning_rate(lr, schedule),
    )


def lamb(
    schedule: Schedule = constant(),
    *,
    lr: float = 1e-2,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    weight_decay_mask: DecayMask = "all",
) -> GradientTransformation:
    """AdamW for large batches: steps as long as the leaf that they change (You et al., arXiv 1904.00962, algorithm 2).

    As `optax.lamb`: p <- p - lr s(t) |p| / |u| u with u = adam(g) + d p.

    Args:
        schedule: factor on the learning rate.
        lr: learning rate at its peak.
        b1: decay of the mean of g, in [0, 1).
        b2: decay of the mean of g^2, in [0, 1).
        eps: added to the denominator.
        weight_decay: d.
        weight_decay_mask: what decays: all, or the matrices only.
    """
    return chain(
        scale_by_adam(b1, b2, eps),
        add_decayed_weights(weight_decay, DECAY_MASKS[weight_decay_mask]),
        scale_by_trust_ratio(),
        scale_by_learning_rate(lr, schedule),
    )


def lars(
    schedule: Schedule = constant(),
    *,
    lr: float = 10.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    trust_coefficient: float = 0.001,
    weight_decay: float = 5e-4,
    weight_decay_mask: DecayMask = "matrices",
) -> GradientTransformation:
    """SGD for large batches: steps as long as the leaf that they change (You et al., arXiv 1708.03888, algorithm 1).

    As `optax.lars`: m <- momentum m + lr s(t) r (g + d p); p <- p - m; r = trust_coefficient |p| / |g + d p| for
    matrices and 1 for the rest, as is done since the paper (optax's masks say so; by default it is for all leaves).

    Args:
        schedule: factor on the learning rate.
        lr: learning rate at its peak; with a batch of thousands, tens.
        momentum: decay of the momentum, in [0, 1).
        nesterov: look ahead along the momentum.
        trust_coefficient: part of |p| that a step of rate 1 goes.
        weight_decay: d, added to the gradient as d p (L2).
        weight_decay_mask: what decays: all, or the matrices only.
    """
    return chain(
        add_decayed_weights(weight_decay, DECAY_MASKS[weight_decay_mask]),
        masked(scale_by_trust_ratio(trust_coefficient), is_matrix),
        scale_by_learning_rate(lr, schedule),
        trace(momentum, nesterov=nesterov),
    )


def adafactor(
    schedule: Schedule = constant(),
    *,
    lr: float = 1e-2,
    decay_rate: float = 0.8,
    eps: float = 1e-30,
    clip: float = 1.0,
    min_rms: float = 1e-3,
    min_dim_size_to_factor: int = 128,
    weight_decay: float = 0.0,
    weight_decay_mask: DecayMask = "all",
) -> GradientTransformation:
    """Adam without momentum, its second moment in two factors: next to no state (Shazeer and Stern, arXiv 1804.04235).

    As `optax.adafactor`; the decay is decoupled, and scaled by the rate, which optax does not do.
    `torch.optim.Adafactor` differs: it factors the last two dimensions of every leaf, and caps the rate at 1 / sqrt(t).

    Args:
        schedule: factor on the learning rate.
        lr: learning rate at its peak, relative to the size of the leaf.
        decay_rate: exponent c of the decay 1 - t^-c of the mean of g^2.
        eps: added to g^2.
        clip: largest root mean square of a leaf's update, before the rate.
        min_rms: what a leaf's root mean square counts for at least.
        min_dim_size_to_factor: smallest dimension that is factored.
        weight_decay: d, decoupled.
        weight_decay_mask: what decays: all, or the matrices only.
    """
    return chain(
        scale_by_adafactor(decay_rate, eps, min_dim_size_to_factor=min_dim_size_to_factor),
        clip_by_block_rms(clip),
        scale_by_param_block_rms(min_rms),
        add_decayed_weights(weight_decay, DECAY_MASKS[weight_decay_mask]),
        scale_by_learning_rate(lr, schedule),
    )


def muon(
    schedule: Schedule = constant(),
    *,
    lr: float = 0.02,
    momentum: float = 0.95,
    nesterov: bool = True,
    bfloat16: bool = True,
    adamw_lr: float = 3e-4,
    weight_decay: float = 0.01,
    weight_decay_mask: DecayMask = "matrices",
) -> GradientTransformation:
    """Orthogonalised momentum for hidden matrices, AdamW for the rest: first and last layer, biases, norms, embeddings.

    Keller Jordan et al., "Muon", 2024. `torch.optim.Muon` is the half for matrices of two dimensions, with the momentum
    as a running mean, which has the same direction.

    Args:
        schedule: factor on both learning rates.
        lr: learning rate of the hidden matrices at its peak.
        momentum: decay of their momentum, in [0, 1).
        nesterov: look ahead along the momentum.
        bfloat16: orthogonalise in bfloat16, as published; else in the type of the parameters.
        adamw_lr: learning rate of the rest at its peak.
        weight_decay: d, decoupled.
        weight_decay_mask: what decays: all, or the matrices only.
    """
    hidden = chain(
        trace(momentum, nesterov=nesterov),
        orthogonalize(torch.bfloat16 if bfloat16 else None),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr, schedule),
    )
    rest = adamw(schedule, lr=adamw_lr, weight_decay=weight_decay, weight_decay_mask=weight_decay_mask)
    return partition(
        {"rest": rest, "hidden": hidden}, lambda name, leaf: "hidden" if is_hidden_matrix(name, leaf) else "rest"
    )


def soap(
    schedule: Schedule = constant(),
    *,
    lr: float = 3e-3,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    refresh_every: int = 10,
    max_size: int = 1024,
    weight_decay: float = 0.01,
    weight_decay_mask: DecayMask = "all",
) -> GradientTransformation:
    """AdamW in the eigenbasis of Shampoo's preconditioner: second order (Vyas et al., arXiv 2409.11321).

    Neither torch nor optax has it. See `scale_by_soap` for what differs from the paper.

    Args:
        schedule: factor on the learning rate.
        lr: learning rate at its peak.
        b1: decay of the mean of g, in [0, 1).
        b2: decay of the mean of g^2 and of the covariances, in [0, 1).
        eps: added to the denominator.
        refresh_every: updates in which every basis is refreshed at least once.
        max_size: sides of a matrix that are longer keep their own basis.
        weight_decay: d, decoupled.
        weight_decay_mask: what decays: all, or the matrices only.
    """
    return chain(
        scale_by_soap(b1, b2, eps, refresh_every=refresh_every, max_size=max_size),
        add_decayed_weights(weight_decay, DECAY_MASKS[weight_decay_mask]),
        scale_by_learning_rate(lr, schedule),
    )


def schedule_free_adamw(
    schedule: Schedule = constant(),
    *,
    lr: float = 2.5e-3,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_decay_mask: DecayMask = "all",
) -> GradientTransformation:
    """AdamW with an average in the place of momentum and of a falling rate (Defazio et al., arXiv 2405.15682, alg. 1).

    As `optax.contrib.schedule_free_adamw` at a constant rate; during a warm-up, optax weights the average by the rate
    of the next update. The schedule is for warm-up alone: `--schedule constant --schedule.warmup-steps N`.

    Args:
        schedule: factor on the learning rate.
        lr: learning rate after the warm-up.
        b1: share of the average where the gradient is taken, in (0, 1].
        b2: decay of the mean of g^2, in [0, 1).
        eps: added to the denominator.
        weight_decay: d, decoupled.
        weight_decay_mask: what decays: all, or the matrices only.
    """
    base = chain(
        scale_by_rms(b2, eps, debias=True),
        add_decayed_weights(weight_decay, DECAY_MASKS[weight_decay_mask]),
        scale_by_learning_rate(lr, schedule),
    )
    return schedule_free(base, b1)


def sam_sgd(
    schedule: Schedule = constant(),
    *,
    lr: float = 0.1,
    rho: float = 0.05,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 5e-4,
    weight_decay_mask: DecayMask = "all",
) -> GradientTransformation:
    """SGD by the gradient at the worst point nearby, p + rho g / |g|: two gradients a step (Foret et al., 2010.01412).

    Args:
        schedule: factor on the learning rate.
        lr: learning rate at its peak.
        rho: how far that point is.
        momentum: decay of the momentum, in [0, 1).
        nesterov: look ahead along the momentum.
        weight_decay: d, added to the gradient as d p (L2).
        weight_decay_mask: what decays: all, or the matrices only.
    """
    return chain(
        sam(rho),
        add_decayed_weights(weight_decay, DECAY_MASKS[weight_decay_mask]),
        trace(momentum, nesterov=nesterov),
        scale_by_learning_rate(lr, schedule),
    )


OPTIMIZERS: dict[str, Callable[..., GradientTransformation]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "nadam": nadam,
    "radam": radam,
    "adabelief": adabelief,
    "rmsprop": rmsprop,
    "lion": lion,
    "lamb": lamb,
    "lars": lars,
    "adafactor": adafactor,
    "muon": muon,
    "soap": soap,
    "schedule-free-adamw": schedule_free_adamw,
    "sam-sgd": sam_sgd,
}
