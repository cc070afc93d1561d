"""The ingredients: gradient transforms that do one thing each. Symbols: g gradient (or update so far), p parameter.

The products are written as torch's fused ones, which go through memory once: `addcmul(a, b, c)` is a + b c, and
`lerp(a, b, w)` is a + w (b - a).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import backbones.random as random
import backbones.tree as tree
from backbones.optim.base import (
    GradientTransformation,
    as_leaves,
    hyperparameter,
    identity,
    no_updates,
    stateless,
)
from backbones.optim.label import everything
from backbones.optim.schedule import Schedule
from backbones.types import Params, Updates


class ScaleState(NamedTuple):
    factor: Tensor


def scale(factor: float) -> GradientTransformation:
    """g <- factor g."""

    def init(params: Params) -> ScaleState:
        return ScaleState(hyperparameter(factor, params))

    def update(updates: Updates, state: ScaleState, params: Params) -> tuple[Updates, ScaleState]:
        del params
        (factor,) = as_leaves(updates, state.factor)
        return tree.map(lambda g: g * factor, updates), state

    return GradientTransformation(init, update)


class ScaleByScheduleState(NamedTuple):
    step: Tensor
    """Updates so far, 0-D int64."""


def scale_by_schedule(schedule: Schedule) -> GradientTransformation:
    """g <- schedule(step) g."""

    def init(params: Params) -> ScaleByScheduleState:
        return ScaleByScheduleState(no_updates(params))

    def update(updates: Updates, state: ScaleByScheduleState, params: Params) -> tuple[Updates, ScaleByScheduleState]:
        del params
        (factor,) = as_leaves(updates, schedule(state.step))
        return tree.map(lambda g: g * factor, updates), ScaleByScheduleState(state.step + 1)

    return GradientTransformation(init, update)


class ScaleByLearningRateState(NamedTuple):
    step: Tensor
    """Updates so far, 0-D int64."""
    peak: Tensor
    """The rate that the schedule scales."""
    learning_rate: Tensor
    """The rate of the latest update."""


def scale_by_learning_rate(learning_rate: float, schedule: Schedule) -> GradientTransformation:
    """g <- -learning_rate schedule(step) g: the step downhill."""

    def init(params: Params) -> ScaleByLearningRateState:
        peak = hyperparameter(learning_rate, params)
        return ScaleByLearningRateState(no_updates(params), peak, torch.zeros_like(peak))

    def update(
        updates: Updates, state: ScaleByLearningRateState, params: Params
    ) -> tuple[Updates, ScaleByLearningRateState]:
        del params
        learning_rate = state.peak * schedule(state.step)
        (downhill,) = as_leaves(updates, -learning_rate)
        updates = tree.map(lambda g: g * downhill, updates)
        return updates, ScaleByLearningRateState(state.step + 1, state.peak, learning_rate)

    return GradientTransformation(init, update)


class TraceState(NamedTuple):
    decay: Tensor
    trace: Updates


def trace(decay: float, *, nesterov: bool = False) -> GradientTransformation:
    """Momentum: m <- g + decay m; the update is m, or g + decay m with Nesterov's look-ahead. Nothing for a decay of 0.

    Source: Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013.
    """
    if decay == 0:
        return identity()

    def init(params: Params) -> TraceState:
        return TraceState(hyperparameter(decay, params), tree.zeros_like(params))

    def update(updates: Updates, state: TraceState, params: Params) -> tuple[Updates, TraceState]:
        del params
        (decay,) = as_leaves(updates, state.decay)
        trace = tree.map(lambda g, m: torch.addcmul(g, m, decay), updates, state.trace)
        updates = tree.map(lambda g, m: torch.addcmul(g, m, decay), updates, trace) if nesterov else trace
        return updates, TraceState(state.decay, trace)

    return GradientTransformation(init, update)


class EmaState(NamedTuple):
    step: Tensor
    """Updates so far, 0-D int64."""
    decay: Tensor
    ema: Updates


def ema(decay: float, *, debias: bool = True) -> GradientTransformation:
    """Running mean of the updates: m <- decay m + (1 - decay) g; the update is m, or m / (1 - decay^t), unbiased."""

    def init(params: Params) -> EmaState:
        return EmaState(no_updates(params), hyperparameter(decay, params), tree.zeros_like(params))

    def update(updates: Updates, state: EmaState, params: Params) -> tuple[Updates, EmaState]:
        del params
        step = state.step + 1
        weight, unbias = as_leaves(updates, 1 - state.decay, 1 / (1 - state.decay**step))
        mean = tree.map(lambda g, m: torch.lerp(m, g, weight), updates, state.ema)
        updates = tree.map(lambda m: m * unbias, mean) if debias else mean
        return updates, EmaState(step, state.decay, mean)

    return GradientTransformation(init, update)


class AddDecayedWeightsState(NamedTuple):
    weight_decay: Tensor


def add_decayed_weights(
    weight_decay: float, mask: Callable[[str, Tensor], bool] = everything
) -> GradientTransformation:
    """g <- g + weight_decay p, where `mask(name, p)` is true. Nothing for a decay of 0.

    Before the rest of a chain it is L2 regularisation, just before the learning rate it is decoupled weight decay
    (Loshchilov and Hutter, arXiv 1711.05101).
    """
    if weight_decay == 0:
        return identity()

    def init(params: Params) -> AddDecayedWeightsState:
        return AddDecayedWeightsState(hyperparameter(weight_decay, params))

    def update(
        updates: Updates, state: AddDecayedWeightsState, params: Params
    ) -> tuple[Updates, AddDecayedWeightsState]:
        (decay,) = as_leaves(updates, state.weight_decay)
        updates = {
            name: torch.addcmul(g, params[name], decay) if mask(name, params[name]) else g
            for name, g in updates.items()
        }
        return updates, state

    return GradientTransformation(init, update)


class AddNoiseState(NamedTuple):
    step: Tensor
    """Updates so far, 0-D int64."""
    key: Tensor
    """Random key, 0-D int64; never changes."""
    eta: Tensor
    gamma: Tensor


def add_noise(eta: float, gamma: float, seed: int) -> GradientTransformation:
    """g <- g + noise of variance eta / t^gamma, normal, a function of the seed, the update t = 1, 2, ... and the place.

    Source: Neelakantan et al., "Adding gradient noise improves learning for very deep networks", arXiv 1511.06807, eq.
    1.
    """

    def init(params: Params) -> AddNoiseState:
        rates = [hyperparameter(value, params) for value in (eta, gamma)]
        return AddNoiseState(no_updates(params), random.key(seed, device=rates[0].device), *rates)

    def update(updates: Updates, state: AddNoiseState, params: Params) -> tuple[Updates, AddNoiseState]:
        del params
        step = state.step + 1
        (deviation,) = as_leaves(updates, (state.eta / step**state.gamma).sqrt())
        key = random.fold_in(state.key, step)
        noisy = {}
        for i, (name, g) in enumerate(updates.items()):
            places = torch.arange(g.numel(), device=g.device).reshape(g.shape)
            noise = random.normal(random.fold_in(random.fold_in(key, i), places))
            noisy[name] = torch.addcmul(g, noise.to(g.dtype), deviation)
        return noisy, state._replace(step=step)

    return GradientTransformation(init, update)


def scale_by_sign() -> GradientTransformation:
    """g <- sign(g) (Bernstein et al., "signSGD", arXiv 1802.04434)."""
    return stateless(lambda updates, params: tree.map(torch.sign, updates))


def centralize() -> GradientTransformation:
    """g <- g minus its mean over the inputs of each unit, for matrices and kernels; vectors stay.

    Source: Yong et al., "Gradient centralization", arXiv 2004.01461, eq. 1.
    """

    def leaf(g: Tensor) -> Tensor:
        return g - g.mean(dim=tuple(range(1, g.ndim)), keepdim=True) if g.ndim > 1 else g

    return stateless(lambda updates, params: tree.map(leaf, updates))


def zero_nans() -> GradientTransformation:
    """g <- 0 where g is NaN."""

    def leaf(g: Tensor) -> Tensor:
        return torch.where(g.isnan(), torch.zeros_like(g), g)

    return stateless(lambda updates, params: tree.map(leaf, updates))


class NormalizeByUpdateNormState(NamedTuple):
    norm: Tensor


def normalize_by_update_norm(norm: float = 1.0, *, eps: float = 1e-6) -> GradientTransformation:
    """g <- norm g / (|g| + eps), where |g| is the norm over the whole tree."""

    def init(params: Params) -> NormalizeByUpdateNormState:
        return NormalizeByUpdateNormState(hyperparameter(norm, params))

    def update(
        updates: Updates, state: NormalizeByUpdateNormState, params: Params
    ) -> tuple[Updates, NormalizeByUpdateNormState]:
        del params
        (factor,) = as_leaves(updates, state.norm / (tree.global_norm(updates) + eps))
        return tree.map(lambda g: g * factor, updates), state

    return GradientTransformation(init, update)
