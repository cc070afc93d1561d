"""Averages of the parameters over the steps, which are evaluated in their place. p parameter, u update.

An average is part of the state of the optimizer, so it is saved and resumed with it; `evaluation_params` finds it
there.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.errors import InputError
from backbones.optim.base import GradientTransformation, as_leaves, hyperparameter, no_updates
from backbones.optim.transform import ScaleByLearningRateState
from backbones.types import OptState, Params, Updates


class EmaParamsState(NamedTuple):
    step: Tensor
    """Updates so far, 0-D int64."""
    decay: Tensor
    average: Params

    def evaluation_params(self, params: Params) -> Params:
        """The average."""
        return tree.where(self.step > 0, self.average, params)


def ema_params(decay: float) -> GradientTransformation:
    """Exponential moving average of the parameters: the mean of p_1 ... p_t, each weighted `decay` times the next one.

    The last of a chain. From the first step on it is a true mean: the initial parameters do not count (as the running
    means of Adam, arXiv 1412.6980, section 3, are made unbiased).
    """

    def init(params: Params) -> EmaParamsState:
        return EmaParamsState(no_updates(params), hyperparameter(decay, params), tree.zeros_like(params))

    def update(updates: Updates, state: EmaParamsState, params: Params) -> tuple[Updates, EmaParamsState]:
        step = state.step + 1
        (weight,) = as_leaves(updates, (1 - state.decay) / (1 - state.decay**step))
        average = tree.map(lambda a, p, u: torch.lerp(a, p + u, weight), state.average, params, updates)
        return updates, EmaParamsState(step, state.decay, average)

    return GradientTransformation(init, update)


class SwaState(NamedTuple):
    step: Tensor
    """Updates so far, 0-D int64."""
    count: Tensor
    """Parameters in the average, 0-D int64."""
    average: Params

    def evaluation_params(self, params: Params) -> Params:
        """The average, or `params` as long as there is none."""
        return tree.where(self.count > 0, self.average, params)


def swa(start: int, *, every: int = 1) -> GradientTransformation:
    """Stochastic weight averaging: the plain mean of the parameters after `start` updates and every so many later.

    The last of a chain (Izmailov et al., "Averaging weights leads to wider optima and better generalization",
    arXiv 1803.05407, algorithm 1).
    """

    def init(params: Params) -> SwaState:
        return SwaState(no_updates(params), no_updates(params), tree.zeros_like(params))

    def update(updates: Updates, state: SwaState, params: Params) -> tuple[Updates, SwaState]:
        step = state.step + 1
        counts = (step >= start) & ((step - start) % every == 0)
        count = state.count + counts.to(torch.int64)
        (weight,) = as_leaves(updates, counts / count.clamp(min=1).to(torch.float64))
        average = tree.map(lambda a, p, u: torch.lerp(a, p + u, weight), state.average, params, updates)
        return updates, SwaState(step, count, average)

    return GradientTransformation(init, update)


class ScheduleFreeState(NamedTuple):
    b1: Tensor
    max_rate: Tensor
    """The highest learning rate so far."""
    weight_sum: Tensor
    """Of the squares of `max_rate`, over all updates so far."""
    z: Params
    """Where the inner transform has got to."""
    inner: OptState

    def evaluation_params(self, params: Params) -> Params:
        """x = (y - (1 - b1) z) / b1."""
        (weight,) = as_leaves(params, 1 - 1 / self.b1)
        return tree.map(lambda y, z: torch.lerp(y, z, weight), params, self.z)


def schedule_free(transform: GradientTransformation, b1: float = 0.9) -> GradientTransformation:
    """Averaging in the place of momentum and of a falling learning rate.

    `transform`, which has no momentum and ends in a learning rate, moves z; x is the mean of all z, each weighted by
    the square of the highest rate up to it; the gradient is taken at y = (1 - b1) z + b1 x. The parameters are y, those
    to evaluate x (Defazio et al., "The road less scheduled", arXiv 2405.15682, eq. 3 to 5 and section 4.3).

    Raises:
        InputError: b1 is not in (0, 1].
    """
    if not 0 < b1 <= 1:
        raise InputError(f"b1 is {b1}; it must be above 0, for the average to be had, and at most 1")

    def init(params: Params) -> ScheduleFreeState:
        zero = hyperparameter(0.0, params)
        z = tree.map(torch.clone, params)
        return ScheduleFreeState(hyperparameter(b1, params), zero, zero.clone(), z, transform.init(params))

    def update(updates: Updates, state: ScheduleFreeState, params: Params) -> tuple[Updates, ScheduleFreeState]:
        updates, inner = transform.update(updates, state.inner, params)
        learning_rate = tree.find(inner, ScaleByLearningRateState)[0].learning_rate
        max_rate = torch.maximum(state.max_rate, learning_rate)
        weight_sum = state.weight_sum + max_rate**2
        share = torch.where(weight_sum > 0, max_rate**2 / weight_sum, 0)  # a warm-up begins with a rate of 0
        share, b1, rest = as_leaves(updates, share, state.b1, 1 - state.b1)

        def leaf(u: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            new_z = z + u
            b1_x = y - rest * z
            return rest * u + share * (b1 * new_z - b1_x), new_z  # (1 - b1) (z' - z) + b1 (x' - x)

        updates, z = tree.map_to_several(leaf, updates, params, state.z)
        return updates, ScheduleFreeState(state.b1, max_rate, weight_sum, z, inner)

    return GradientTransformation(init, update)


AVERAGES = {node.__name__: node for node in (EmaParamsState, SwaState, ScheduleFreeState)}
"""Name -> the state of a transform that keeps an average."""


def evaluation_params(opt_state: OptState, params: Params) -> Params:
    """The parameters to evaluate: the last average in the state, or `params` themselves if there is none."""
    averages = tree.find(opt_state, tuple(AVERAGES.values()))
    return averages[-1].evaluation_params(params) if averages else params
