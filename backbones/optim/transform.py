"""The ingredients: gradient transforms that do one thing each. Symbols: g gradient (or update so far), p parameter."""

from typing import NamedTuple

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.optim.base import GradientTransformation, hyperparameter, map_updates
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
        return map_updates(lambda g: state.factor * g, updates), state

    return GradientTransformation(init, update)


class ScaleByLearningRateState(NamedTuple):
    step: Tensor
    """Updates so far, 0-D int64."""
    peak: Tensor
    """The rate that the schedule scales."""
    learning_rate: Tensor
    """The rate of the latest update."""


def scale_by_learning_rate(learning_rate: float, schedule: Schedule) -> GradientTransformation:
    """g <- -learning_rate schedule(step) g: the step downhill, the last of a chain."""

    def init(params: Params) -> ScaleByLearningRateState:
        peak = hyperparameter(learning_rate, params)
        return ScaleByLearningRateState(torch.zeros_like(peak, dtype=torch.int64), peak, torch.zeros_like(peak))

    def update(
        updates: Updates, state: ScaleByLearningRateState, params: Params
    ) -> tuple[Updates, ScaleByLearningRateState]:
        del params
        rate = state.peak * schedule(state.step)
        return map_updates(lambda g: -rate * g, updates), ScaleByLearningRateState(state.step + 1, state.peak, rate)

    return GradientTransformation(init, update)


class TraceState(NamedTuple):
    decay: Tensor
    trace: Updates


def trace(decay: float, *, nesterov: bool = False) -> GradientTransformation:
    """Momentum: m <- g + decay m; the update is m, or g + decay m with Nesterov's look-ahead.

    Source: Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013.
    """

    def init(params: Params) -> TraceState:
        return TraceState(hyperparameter(decay, params), tree.zeros_like(params))

    def update(updates: Updates, state: TraceState, params: Params) -> tuple[Updates, TraceState]:
        del params
        trace = map_updates(lambda g, m: g + state.decay * m, updates, state.trace)
        updates = map_updates(lambda g, m: g + state.decay * m, updates, trace) if nesterov else trace
        return updates, TraceState(state.decay, trace)

    return GradientTransformation(init, update)


class ScaleByAdamState(NamedTuple):
    step: Tensor
    """Updates so far, 0-D int64."""
    b1: Tensor
    b2: Tensor
    eps: Tensor
    mu: Updates
    """Running mean of g."""
    nu: Updates
    """Running mean of g^2."""


def scale_by_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> GradientTransformation:
    """mu <- b1 mu + (1 - b1) g, nu <- b2 nu + (1 - b2) g^2; the update is mu^ / (sqrt(nu^) + eps), ^ unbiased.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", arXiv 1412.6980, algorithm 1.
    """

    def init(params: Params) -> ScaleByAdamState:
        rates = [hyperparameter(value, params) for value in (b1, b2, eps)]
        step = torch.zeros_like(rates[0], dtype=torch.int64)
        return ScaleByAdamState(step, *rates, mu=tree.zeros_like(params), nu=tree.zeros_like(params))

    def update(updates: Updates, state: ScaleByAdamState, params: Params) -> tuple[Updates, ScaleByAdamState]:
        del params
        step, b1, b2, eps = state.step + 1, state.b1, state.b2, state.eps
        mu = map_updates(lambda g, m: b1 * m + (1 - b1) * g, updates, state.mu)
        nu = map_updates(lambda g, n: b2 * n + (1 - b2) * g * g, updates, state.nu)
        mu_correction, nu_correction = 1 - b1**step, 1 - b2**step
        updates = map_updates(lambda m, n: (m / mu_correction) / ((n / nu_correction).sqrt() + eps), mu, nu)
        return updates, ScaleByAdamState(step, b1, b2, eps, mu, nu)

    return GradientTransformation(init, update)


class AddDecayedWeightsState(NamedTuple):
    weight_decay: Tensor


def add_decayed_weights(weight_decay: float) -> GradientTransformation:
    """g <- g + weight_decay p.

    Before the rest of a chain it is L2 regularisation, just before the learning rate it is decoupled weight decay
    (Loshchilov and Hutter, arXiv 1711.05101).
    """

    def init(params: Params) -> AddDecayedWeightsState:
        return AddDecayedWeightsState(hyperparameter(weight_decay, params))

    def update(
        updates: Updates, state: AddDecayedWeightsState, params: Params
    ) -> tuple[Updates, AddDecayedWeightsState]:
        return map_updates(lambda g, p: g + state.weight_decay * p, updates, params), state

    return GradientTransformation(init, update)


class ClipByGlobalNormState(NamedTuple):
    max_norm: Tensor


def clip_by_global_norm(max_norm: float) -> GradientTransformation:
    """g <- g min(1, max_norm / |g|), where |g| is the norm over the whole tree.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", arXiv 1211.5063.
    """

    def init(params: Params) -> ClipByGlobalNormState:
        return ClipByGlobalNormState(hyperparameter(max_norm, params))

    def update(updates: Updates, state: ClipByGlobalNormState, params: Params) -> tuple[Updates, ClipByGlobalNormState]:
        del params
        factor = (state.max_norm / tree.global_norm(updates)).clamp(max=1.0)
        return map_updates(lambda g: factor * g, updates), state

    return GradientTransformation(init, update)
