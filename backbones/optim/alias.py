"""Optimizers: each is a chain of transforms. Symbols: p parameter, g gradient, d weight decay, s(t) schedule.

The keyword-only parameters are the fields `--optim.FIELD`; their defaults are those of the authors, except learning
rates, which depend on the task, `max_size` of SOAP (10000) and weight decay of Muon (0; b2 of its Adam is 0.95 and eps
1e-10). An experiment gives the others: `schedule` multiplies the learning rate, `decays` selects the leaves with weight
decay, and `hidden` the matrices of hidden layers.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from typing_extensions import Doc

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
from backbones.optim.label import Mask, everything, is_matrix
from backbones.optim.orthogonalize import orthogonalize
from backbones.optim.schedule import Schedule, constant
from backbones.optim.soap import scale_by_soap
from backbones.optim.transform import add_decayed_weights, sam, scale_by_learning_rate, trace
from backbones.ranges import Count, NonNegative, Positive, Probability, Share, checked

LearningRate = Annotated[NonNegative, Doc("learning rate, which the schedule multiplies")]
Momentum = Annotated[Probability, Doc("decay of the momentum")]
Nesterov = Annotated[bool, Doc("use Nesterov momentum")]
B1 = Annotated[Probability, Doc("decay of the running mean of g")]
B2 = Annotated[Probability, Doc("decay of the running mean of g^2")]
Eps = Annotated[NonNegative, Doc("added to the denominator")]
L2 = Annotated[NonNegative, Doc("d of L2 regularisation: d p is added to the gradient")]
WeightDecay = Annotated[NonNegative, Doc("d of decoupled weight decay: lr s(t) d p is subtracted from p")]


@checked
def sgd(
    schedule: Schedule = constant(),
    decays: Mask = everything,
    *,
    lr: LearningRate = 0.1,
    momentum: Momentum = 0.9,
    nesterov: Nesterov = False,
    weight_decay: L2 = 5e-4,
) -> GradientTransformation:
    """SGD with momentum, as `torch.optim.SGD`: m <- momentum m + g + d p; p <- p - lr s(t) m."""
    return chain(
        add_decayed_weights(weight_decay, decays),
        trace(momentum, nesterov=nesterov),
        scale_by_learning_rate(lr, schedule),
    )


@checked
def adam(
    schedule: Schedule = constant(),
    decays: Mask = everything,
    *,
    lr: LearningRate = 1e-3,
    b1: B1 = 0.9,
    b2: B2 = 0.999,
    eps: Eps = 1e-8,
    weight_decay: L2 = 0.0,
) -> GradientTransformation:
    """Adam with L2 regularisation, as `torch.optim.Adam`: p <- p - lr s(t) adam(g + d p) (arXiv 1412.6980)."""
    return chain(
        add_decayed_weights(weight_decay, decays), scale_by_adam(b1, b2, eps), scale_by_learning_rate(lr, schedule)
    )


@checked
def adamw(
    schedule: Schedule = constant(),
    decays: Mask = everything,
    *,
    lr: LearningRate = 1e-3,
    b1: B1 = 0.9,
    b2: B2 = 0.999,
    eps: Eps = 1e-8,
    weight_decay: WeightDecay = 0.01,
) -> GradientTransformation:
    """Adam with decoupled weight decay, as `torch.optim.AdamW`: p <- p - lr s(t) (adam(g) + d p) (arXiv 1711.05101)."""
    return chain(
        scale_by_adam(b1, b2, eps), add_decayed_weights(weight_decay, decays), scale_by_learning_rate(lr, schedule)
    )


@checked
def nadam(
    schedule: Schedule = constant(),
    decays: Mask = everything,
    *,
    lr: LearningRate = 2e-3,
    b1: B1 = 0.9,
    b2: B2 = 0.999,
    eps: Eps = 1e-8,
    weight_decay: WeightDecay = 0.0,
) -> GradientTransformation:
    """Adam with Nesterov momentum, as `optax.nadamw`; `torch.optim.NAdam` also schedules b1 (`momentum_decay`)."""
    return chain(
        scale_by_adam(b1, b2, eps, nesterov=True),
        add_decayed_weights(weight_decay, decays),
        scale_by_learning_rate(lr, schedule),
    )


@checked
def radam(
    schedule: Schedule = constant(),
    decays: Mask = everything,
    *,
    lr: LearningRate = 1e-3,
    b1: B1 = 0.9,
    b2: B2 = 0.999,
    eps: Eps = 1e-8,
    weight_decay: WeightDecay = 0.0,
) -> GradientTransformation:
    """Adam with rectified variance, which replaces a warm-up, as `optax.radam` (Liu et al., arXiv 1908.03265).

    `torch.optim.RAdam` differs: it adds eps to sqrt(nu) before nu is debiased, and it does not rectify at rho = 5.
    """
    return chain(
        scale_by_radam(b1, b2, eps), add_decayed_weights(weight_decay, decays), scale_by_learning_rate(lr, schedule)
    )


@checked
def adabelief(
    schedule: Schedule = constant(),
    decays: Mask = everything,
    *,
    lr: LearningRate = 1e-3,
    b1: B1 = 0.9,
    b2: Annotated[Probability, Doc("decay of the running mean of (g - mean)^2")] = 0.999,
    eps: Annotated[NonNegative, Doc("added to the denominator, and to the running mean of (g - mean)^2")] = 1e-16,
    weight_decay: WeightDecay = 0.0,
) -> GradientTransformation:
    """Adam by the variance of g around its mean instead of around 0, as `optax.adabelief` (arXiv 2010.07468)."""
    return chain(
        scale_by_belief(b1, b2, eps), add_decayed_weights(weight_decay, decays), scale_by_learning_rate(lr, schedule)
    )


@checked
def rmsprop(
    schedule: Schedule = constant(),
    decays: Mask = everything,
    *,
    lr: LearningRate = 1e-3,
    b2: B2 = 0.9,
    eps: Eps = 1e-8,
    momentum: Momentum = 0.0,
    nesterov: Nesterov = False,
    weight_decay: L2 = 0.0,
) -> GradientTransformation:
    """RMSProp: nu <- b2 nu + (1 - b2) g^2; m <- momentum m + g / (sqrt(nu) + eps); p <- p - lr s(t) m.

    As `torch.optim.RMSprop` (Tieleman and Hinton, Lecture 6.5, Coursera 2012). `optax.rmsprop` differs: its eps is
    under the root by default, and its momentum comes after the learning rate.
    """
    return chain(
        add_decayed_weights(weight_decay, decays),
        scale_by_rms(b2, eps),
        trace(momentum, nesterov=nesterov),
        scale_by_learning_rate(lr, schedule),
    )


@checked
def lion(
    schedule: Schedule = constant(),
    decays: Mask = everything,
    *,
    lr: Annotated[NonNegative, Doc("learning rate, 3 to 10 times lower than AdamW's")] = 1e-4,
    b1: Annotated[Probability, Doc("weight of the momentum in the update")] = 0.9,
    b2: Annotated[Probability, Doc("decay of the momentum")] = 0.99,
    weight_decay: Annotated[NonNegative, Doc("d of decoupled weight decay, 3 to 10 times higher than AdamW's")] = 1.0,
) -> GradientTransformation:
    """Sign of an interpolated momentum, as `optax.lion`: p <- p - lr s(t) (lion(g) + d p) (arXiv 2302.06675)."""
    return chain(scale_by_lion(b1, b2), add_decayed_weights(weight_decay, decays), scale_by_learning_rate(lr, schedule))


@checked
def lamb(
    schedule: Schedule = constant(),
    decays: Mask = everything,
    *,
    lr: LearningRate = 1e-2,
    b1: B1 = 0.9,
    b2: B2 = 0.999,
    eps: Eps = 1e-6,
    weight_decay: Annotated[NonNegative, Doc("d of weight decay: d p is added to adam(g)")] = 0.01,
) -> GradientTransformation:
    """LAMB (arXiv 1904.00962), as `optax.lamb`: p <- p - lr s(t) |p| / |u| u with u = adam(g) + d p, for each leaf."""
    return chain(
        scale_by_adam(b1, b2, eps),
        add_decayed_weights(weight_decay, decays),
        scale_by_trust_ratio(),
        scale_by_learning_rate(lr, schedule),
    )


@checked
def lars(
    schedule: Schedule = constant(),
    decays: Mask = is_matrix,
    *,
    lr: Annotated[NonNegative, Doc("learning rate; tens for batches of thousands")] = 10.0,
    momentum: Momentum = 0.9,
    nesterov: Nesterov = False,
    trust_coefficient: Annotated[NonNegative, Doc("length of a step of learning rate 1, relative to |p|")] = 0.001,
    weight_decay: L2 = 5e-4,
) -> GradientTransformation:
    """SGD for large batches: m <- momentum m + lr s(t) r (g + d p); p <- p - m (You et al., arXiv 1708.03888, alg. 1).

    As `optax.lars`. r is trust_coefficient |p| / |g + d p| for matrices, where the paper divides by |g| + d |p|. It is
    1 for other leaves, which is usual but not in the paper; optax scales all leaves by default.
    """
    return chain(
        add_decayed_weights(weight_decay, decays),
        masked(scale_by_trust_ratio(trust_coefficient), is_matrix),
        scale_by_learning_rate(lr, schedule),
        trace(momentum, nesterov=nesterov),
    )


@checked
def adafactor(
    schedule: Schedule = constant(),
    decays: Mask = everything,
    *,
    lr: Annotated[NonNegative, Doc("learning rate, relative to the root mean square of the leaf")] = 1e-2,
    decay_rate: Annotated[NonNegative, Doc("c of the decay 1 - t^-c of the running mean of g^2")] = 0.8,
    eps: Annotated[NonNegative, Doc("added to g^2")] = 1e-30,
    clip: Annotated[Positive, Doc("largest root mean square of a leaf's update, before lr")] = 1.0,
    min_rms: Annotated[NonNegative, Doc("lower bound of the root mean square of the leaf, for lr")] = 1e-3,
    min_dim_size_to_factor: Annotated[Count, Doc("size of the smallest dimension that is factored")] = 128,
    weight_decay: WeightDecay = 0.0,
) -> GradientTransformation:
    """Adam without momentum, and with a factored second moment: almost no state (Shazeer and Stern, arXiv 1804.04235).

    As `optax.adafactor`, except that weight decay is multiplied by the learning rate. `torch.optim.Adafactor` differs:
    it factors the last two dimensions of every leaf, and bounds the learning rate by 1 / sqrt(t).
    """
    return chain(
        scale_by_adafactor(decay_rate, eps, min_dim_size_to_factor=min_dim_size_to_factor),
        clip_by_block_rms(clip),
        scale_by_param_block_rms(min_rms),
        add_decayed_weights(weight_decay, decays),
        scale_by_learning_rate(lr, schedule),
    )


@checked
def muon(
    schedule: Schedule = constant(),
    decays: Mask = is_matrix,
    hidden: Mask = is_matrix,
    *,
    lr: Annotated[NonNegative, Doc("learning rate of the hidden matrices, which the schedule multiplies")] = 0.02,
    momentum: Annotated[Probability, Doc("decay of the momentum of the hidden matrices")] = 0.95,
    nesterov: Nesterov = True,
    bfloat16: Annotated[bool, Doc("orthogonalise in bfloat16, as published; else in the parameters' dtype")] = True,
    adamw_lr: Annotated[NonNegative, Doc("learning rate of AdamW, which the schedule multiplies")] = 3e-4,
    weight_decay: WeightDecay = 0.01,
) -> GradientTransformation:
    """Orthogonalised momentum for hidden matrices, AdamW for all other leaves (Keller Jordan et al., "Muon", 2024).

    `hidden` selects the matrices; those of the first and the last layer should not be among them. `torch.optim.Muon` is
    the first half, for leaves of two dimensions.
    """
    transforms = {
        "hidden": chain(
            trace(momentum, nesterov=nesterov),
            orthogonalize(torch.bfloat16 if bfloat16 else None),
            add_decayed_weights(weight_decay, decays),
            scale_by_learning_rate(lr, schedule),
        ),
        "rest": adamw(schedule, decays, lr=adamw_lr, weight_decay=weight_decay),
    }
    return partition(transforms, lambda name, leaf: "hidden" if hidden(name, leaf) else "rest")


@checked
def soap(
    schedule: Schedule = constant(),
    decays: Mask = everything,
    *,
    lr: LearningRate = 3e-3,
    b1: B1 = 0.95,
    b2: Annotated[Probability, Doc("decay of the running means of g^2 and of the covariances")] = 0.95,
    eps: Eps = 1e-8,
    refresh_every: Annotated[Count, Doc("number of updates in which every basis is refreshed at least once")] = 10,
    max_size: Annotated[Count, Doc("where a matrix has more rows or columns, their basis stays the identity")] = 1024,
    weight_decay: WeightDecay = 0.01,
) -> GradientTransformation:
    """AdamW in the eigenbasis of Shampoo's preconditioner, a second-order method (Vyas et al., arXiv 2409.11321)."""
    return chain(
        scale_by_soap(b1, b2, eps, refresh_every=refresh_every, max_size=max_size),
        add_decayed_weights(weight_decay, decays),
        scale_by_learning_rate(lr, schedule),
    )


@checked
def schedule_free_adamw(
    schedule: Schedule = constant(),
    decays: Mask = everything,
    *,
    lr: LearningRate = 2.5e-3,
    b1: Annotated[Share, Doc("weight of the average in the parameters")] = 0.9,
    b2: B2 = 0.999,
    eps: Eps = 1e-8,
    weight_decay: WeightDecay = 0.0,
) -> GradientTransformation:
    """AdamW with averaging in place of momentum and learning-rate decay (Defazio et al., arXiv 2405.15682).

    As `optax.contrib.schedule_free_adamw` at a constant learning rate; during a warm-up, optax weights the average by
    the learning rate of the next update. Use it with `--schedule constant --schedule.warmup-steps N`.
    """
    adamw_without_momentum = chain(
        scale_by_rms(b2, eps, debias=True),
        add_decayed_weights(weight_decay, decays),
        scale_by_learning_rate(lr, schedule),
    )
    return schedule_free(adamw_without_momentum, b1)


@checked
def sam_sgd(
    schedule: Schedule = constant(),
    decays: Mask = everything,
    *,
    lr: LearningRate = 0.1,
    rho: Annotated[NonNegative, Doc("distance at which the gradient is taken")] = 0.05,
    momentum: Momentum = 0.9,
    nesterov: Nesterov = False,
    weight_decay: L2 = 5e-4,
) -> GradientTransformation:
    """SGD with the gradient at p + rho g / |g|: two gradients per step (Foret et al., arXiv 2010.01412)."""
    return chain(
        sam(rho),
        add_decayed_weights(weight_decay, decays),
        trace(momentum, nesterov=nesterov),
        scale_by_learning_rate(lr, schedule),
    )


OPTIMIZERS: dict[str, Callable[..., GradientTransformation]] = {
    optimizer.__name__.replace("_", "-"): optimizer
    for optimizer in (sgd, adam, adamw, nadam, radam, adabelief, rmsprop, lion, lamb, lars, adafactor, muon, soap,
                      schedule_free_adamw, sam_sgd)
}  # fmt: skip
