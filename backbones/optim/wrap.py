"""Transforms around a transform, which decide when it acts, on what, and with which rates."""

from typing import NamedTuple

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.optim.base import GradientTransformation, as_leaves, hyperparameter, no_updates
from backbones.optim.schedule import Schedule
from backbones.types import OptState, Params, Updates


class MultiStepsState(NamedTuple):
    count: Tensor
    """Gradients in the mean, 0-D int64."""
    mean: Updates
    inner: OptState


def multi_steps(transform: GradientTransformation, every: int) -> GradientTransformation:
    """Let `transform` act once every so many updates, on the mean of the gradients since; the others change nothing."""

    def init(params: Params) -> MultiStepsState:
        return MultiStepsState(no_updates(params), tree.zeros_like(params), transform.init(params))

    def update(updates: Updates, state: MultiStepsState, params: Params) -> tuple[Updates, MultiStepsState]:
        count = state.count + 1
        (weight,) = as_leaves(updates, 1 / count.to(torch.float64))
        mean = tree.map(lambda g, m: torch.lerp(m, g, weight), updates, state.mean)
        acts = count == every
        updates, inner = transform.update(mean, state.inner, params)
        zeros = tree.zeros_like(mean)
        new_state = MultiStepsState(torch.where(acts, 0, count), tree.where(acts, zeros, mean), inner)
        return tree.where(acts, updates, zeros), new_state._replace(inner=tree.where(acts, inner, state.inner))

    return GradientTransformation(init, update)


class ApplyIfFiniteState(NamedTuple):
    skipped: Tensor
    """Updates left out in a row, up to now, 0-D int64."""
    total_skipped: Tensor
    inner: OptState


def apply_if_finite(transform: GradientTransformation, max_skipped: int) -> GradientTransformation:
    """Leave parameters and state as they are where `transform` gives an update with a NaN or an infinity.

    After `max_skipped` such updates in a row they go through, so that the run is seen to fail.
    """

    def init(params: Params) -> ApplyIfFiniteState:
        return ApplyIfFiniteState(no_updates(params), no_updates(params), transform.init(params))

    def update(updates: Updates, state: ApplyIfFiniteState, params: Params) -> tuple[Updates, ApplyIfFiniteState]:
        updates, inner = transform.update(updates, state.inner, params)
        finite = torch.stack([leaf.isfinite().all() for leaf in tree.leaves(updates)]).all()
        skipped = torch.where(finite, 0, state.skipped + 1)
        applies = finite | (skipped > max_skipped)
        new_state = ApplyIfFiniteState(
            skipped, state.total_skipped + (~finite).to(torch.int64), tree.where(applies, inner, state.inner)
        )
        return tree.where(applies, updates, tree.zeros_like(updates)), new_state

    return GradientTransformation(init, update)


class LookaheadState(NamedTuple):
    step: Tensor
    """Updates so far, 0-D int64."""
    rate: Tensor
    slow: Params
    inner: OptState


def lookahead(transform: GradientTransformation, *, every: int = 5, rate: float = 0.5) -> GradientTransformation:
    """`transform` moves fast parameters; every so many updates slow ones go a part of the way, and the fast ones there.

    slow <- slow + rate (fast - slow); fast <- slow (Zhang et al., "Lookahead optimizer", arXiv 1907.08610, algorithm
    1).
    """

    def init(params: Params) -> LookaheadState:
        slow = tree.map(torch.clone, params)
        return LookaheadState(no_updates(params), hyperparameter(rate, params), slow, transform.init(params))

    def update(updates: Updates, state: LookaheadState, params: Params) -> tuple[Updates, LookaheadState]:
        step = state.step + 1
        (rate,) = as_leaves(updates, state.rate)
        updates, inner = transform.update(updates, state.inner, params)
        met = tree.map(lambda slow, p, u: torch.lerp(slow, p + u, rate), state.slow, params, updates)
        meets = step % every == 0
        updates = tree.where(meets, tree.map(torch.sub, met, params), updates)
        return updates, LookaheadState(step, state.rate, tree.where(meets, met, state.slow), inner)

    return GradientTransformation(init, update)


class InjectHyperparamsState(NamedTuple):
    step: Tensor
    """Updates so far, 0-D int64."""
    inner: OptState


def inject_hyperparams(transform: GradientTransformation, **schedules: Schedule) -> GradientTransformation:
    """Let rates of `transform` follow schedules: before each update the field of that name is set to schedule(step).

    Every rate is a 0-D leaf of the state already; see `hyperparams` and `set_hyperparams` for reading and changing them
    by hand. Here a schedule gives the rate itself, not a factor.

    Raises:
        ValueError: there is no rate of that name.
    """

    def init(params: Params) -> InjectHyperparamsState:
        step = no_updates(params)
        return InjectHyperparamsState(step, _follow(schedules, step, transform.init(params)))

    def update(
        updates: Updates, state: InjectHyperparamsState, params: Params
    ) -> tuple[Updates, InjectHyperparamsState]:
        updates, inner = transform.update(updates, _follow(schedules, state.step, state.inner), params)
        return updates, InjectHyperparamsState(state.step + 1, inner)

    return GradientTransformation(init, update)


def _follow(schedules: dict[str, Schedule], step: Tensor, opt_state: OptState) -> OptState:
    return set_hyperparams(opt_state, **{name: schedule(step) for name, schedule in schedules.items()})


def hyperparams(opt_state: OptState) -> dict[str, Tensor]:
    """Every rate in the state, by its path, such as `1/b2`: the 0-D floating fields of its NamedTuples."""
    return {
        path: leaf for path, leaf in tree.named_leaves(opt_state).items() if leaf.ndim == 0 and leaf.is_floating_point()
    }


def set_hyperparams(opt_state: OptState, **values: Tensor) -> OptState:
    """The state with the rates of those names set, wherever they occur: `set_hyperparams(opt_state, b2=tensor)`.

    Raises:
        ValueError: there is no rate of that name.
    """
    names = {path.rpartition("/")[2] for path in hyperparams(opt_state)}
    for name in values:
        if name not in names:
            raise ValueError(f"no rate in the state is called {name!r}; there are: {', '.join(sorted(names))}")
    return tree.replace_fields(opt_state, values)
