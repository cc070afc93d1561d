"""Averages of the parameters over training, which are evaluated in their place. Symbols: p parameter, u update.

An average is any node of the optimizer's state with a method `evaluation_params(params)`, which replaces the leaves
that it averages.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.errors import InputError
from backbones.optim.base import GradFn, GradientTransformation, cast_like, hyperparameter, with_grad_fn, zero_count
from backbones.optim.hyperparams import current_learning_rate
from backbones.ranges import Count, Probability, Share, checked
from backbones.types import OptState, Params, Updates


def evaluation_params(opt_state: OptState, params: Params) -> Params:
    """The parameters to evaluate: `params` with the leaves of each average in the state, one after the other."""
    for average in averages(opt_state):
        params = average.evaluation_params(params)
    return params


def averages(opt_state: OptState) -> list[Any]:
    """The averages in the state of an optimizer."""
    return tree.find(opt_state, lambda node: hasattr(node, "evaluation_params"))


def _with_average(average: Params, params: Params, has_begun: Tensor) -> Params:
    return {**params, **{name: torch.where(has_begun, leaf, params[name]) for name, leaf in average.items()}}


class EmaParamsState(NamedTuple):
    step: Tensor
    decay: Tensor
    average: Params

    def evaluation_params(self, params: Params) -> Params:
        """The average; `params` before the first update."""
        return _with_average(self.average, params, self.step > 0)


@checked
def ema_params(decay: Probability) -> GradientTransformation:
    """Exponential moving average of p_1 ... p_t, where p_(i - 1) has `decay` times the weight of p_i.

    The last of a chain. Debiased as in Adam (arXiv 1412.6980, section 3): the initial parameters have no weight.
    The average has the dtype of the parameters, and in bfloat16 it stops moving: its small changes are rounded away.
    """

    def init(params: Params) -> EmaParamsState:
        return EmaParamsState(zero_count(params), hyperparameter(decay, params), tree.zeros_like(params))

    def update(updates: Updates, state: EmaParamsState, params: Params) -> tuple[Updates, EmaParamsState]:
        step = state.step + 1
        (weight,) = cast_like(updates, (1 - state.decay) / (1 - state.decay**step))
        average = tree.map(lambda a, p, u: torch.lerp(a, p + u, weight), state.average, params, updates)
        return updates, EmaParamsState(step, state.decay, average)

    return GradientTransformation(init, update)


class SwaState(NamedTuple):
    step: Tensor
    num_averaged: Tensor
    """Parameters in the average, 0-D int64."""
    average: Params

    def evaluation_params(self, params: Params) -> Params:
        """The average; `params` before update `start`."""
        return _with_average(self.average, params, self.num_averaged > 0)


@checked
def swa(start: int, *, every: Count = 1) -> GradientTransformation:
    """Stochastic weight averaging: the mean of the parameters after update `start` and every `every` updates later.

    The last of a chain (Izmailov et al., "Averaging weights leads to wider optima and better generalization",
    arXiv 1803.05407, algorithm 1). The average has the dtype of the parameters, and in bfloat16 it stops moving: its
    small changes are rounded away.
    """

    def init(params: Params) -> SwaState:
        return SwaState(zero_count(params), zero_count(params), tree.zeros_like(params))

    def update(updates: Updates, state: SwaState, params: Params) -> tuple[Updates, SwaState]:
        step = state.step + 1
        is_averaged = (step >= start) & ((step - start) % every == 0)
        num_averaged = state.num_averaged + is_averaged.to(torch.int64)
        (weight,) = cast_like(updates, is_averaged / num_averaged.clamp(min=1).to(torch.float64))
        average = tree.map(lambda a, p, u: torch.lerp(a, p + u, weight), state.average, params, updates)
        return updates, SwaState(step, num_averaged, average)

    return GradientTransformation(init, update)


class ScheduleFreeState(NamedTuple):
    b1: Tensor
    max_learning_rate: Tensor
    """The highest learning rate so far."""
    weight_sum: Tensor
    """Sum of max_learning_rate^2 over the updates so far."""
    z: Params
    """The parameters that the inner transform updates."""
    inner: OptState

    def evaluation_params(self, params: Params) -> Params:
        """x = (y - (1 - b1) z) / b1."""
        (b1,) = cast_like(params, self.b1)
        return {**params, **{name: (params[name] - (1 - b1) * z) / b1 for name, z in self.z.items()}}


@checked
def schedule_free(transform: GradientTransformation, b1: Share = 0.9) -> GradientTransformation:
    """Averaging in place of momentum and learning-rate decay.

    `transform`, which has a learning rate and no momentum, updates z; x is the mean of all z, weighted by the square of
    the highest learning rate so far; the gradient is taken at y = (1 - b1) z + b1 x. The parameters are y, those to
    evaluate x.

    Source: Defazio et al., "The road less scheduled", arXiv 2405.15682, equations 3 to 5 and section 4.3.

    Raises:
        InputError: (`init`) `transform` has no learning rate in its state.
    """
    inner_update = with_grad_fn(transform.update)

    def init(params: Params) -> ScheduleFreeState:
        inner = transform.init(params)
        _learning_rate_of(inner)
        scalars = hyperparameter(b1, params), hyperparameter(0.0, params), hyperparameter(0.0, params)
        return ScheduleFreeState(*scalars, tree.map(torch.clone, params), inner)

    def update(
        updates: Updates, state: ScheduleFreeState, params: Params, *, grad_fn: GradFn | None = None
    ) -> tuple[Updates, ScheduleFreeState]:
        updates, inner = inner_update(updates, state.inner, params, grad_fn=grad_fn)
        max_learning_rate = torch.maximum(state.max_learning_rate, _learning_rate_of(inner))
        weight_sum = state.weight_sum + max_learning_rate**2
        weight = torch.where(weight_sum > 0, max_learning_rate**2 / weight_sum, 0)  # a warm-up starts at 0
        weight, b1 = cast_like(updates, weight, state.b1)

        def leaf(u: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            x = (y - (1 - b1) * z) / b1
            new_z = z + u
            new_x = (1 - weight) * x + weight * new_z
            new_y = (1 - b1) * new_z + b1 * new_x
            return new_y - y, new_z

        updates, z = tree.map_to_several(leaf, updates, params, state.z)
        return updates, ScheduleFreeState(state.b1, max_learning_rate, weight_sum, z, inner)

    return GradientTransformation(init, update)


def _learning_rate_of(opt_state: OptState) -> Tensor:
    learning_rate = current_learning_rate(opt_state)
    if learning_rate is None:
        raise InputError(
            "schedule_free weights its average by the learning rate, but no field of its transform's state is called "
            "`learning_rate`; end the transform in scale_by_learning_rate"
        )
    return learning_rate
