"""Wrappers around a transform, which decide when and to what it is applied."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import backbones.tree as tree
from backbones.optim.base import GradFn, GradientTransformation, cast_like, hyperparameter, with_grad_fn, zero_count
from backbones.ranges import Count, NonNegativeInt, checked
from backbones.types import OptState, Params, Updates


class MultiStepsState(NamedTuple):
    num_accumulated: Tensor
    """Gradients in the mean, 0-D int64."""
    mean: Updates
    inner: OptState


@checked
def multi_steps(transform: GradientTransformation, every: Count) -> GradientTransformation:
    """Apply `transform` once every `every` updates, to the mean of their gradients; the other updates are 0.

    It gets the `grad_fn` of the last of these batches. A schedule in it counts the updates that are applied: make it
    for num_steps / every. (`--accumulate`, which cuts each batch into parts, needs no such thing.)
    """
    inner_update = with_grad_fn(transform.update)

    def init(params: Params) -> MultiStepsState:
        return MultiStepsState(zero_count(params), tree.zeros_like(params), transform.init(params))

    def update(
        updates: Updates, state: MultiStepsState, params: Params, *, grad_fn: GradFn | None = None
    ) -> tuple[Updates, MultiStepsState]:
        num_accumulated = state.num_accumulated + 1
        (weight,) = cast_like(updates, 1 / num_accumulated.to(torch.float64))
        mean = tree.map(lambda g, m: torch.lerp(m, g, weight), updates, state.mean)
        updates, inner = inner_update(mean, state.inner, params, grad_fn=grad_fn)
        zeros = tree.zeros_like(mean)
        applied = MultiStepsState(torch.zeros_like(num_accumulated), zeros, inner)
        accumulated = MultiStepsState(num_accumulated, mean, state.inner)
        is_last = num_accumulated == every
        return tree.where(is_last, updates, zeros), tree.where(is_last, applied, accumulated)

    return GradientTransformation(init, update)


class ApplyIfFiniteState(NamedTuple):
    skipped: Tensor
    """Consecutive updates up to now that were not finite, also those applied after `max_skipped`; 0-D int64."""
    total_skipped: Tensor
    """All updates that were not finite, also those applied; 0-D int64."""
    inner: OptState


@checked
def apply_if_finite(transform: GradientTransformation, max_skipped: NonNegativeInt) -> GradientTransformation:
    """Skip a step whose gradient, or whose update by `transform`, has a NaN or an infinity.

    The update is then 0, and the state of `transform` stays as it is. After `max_skipped` consecutive ones the next is
    applied, so that the failure shows. In an experiment `--nonfinite` comes first: a step whose gradient is not finite
    stops the run, or leaves the whole state as it is, with the counts of this transform.
    """
    inner_update = with_grad_fn(transform.update)

    def init(params: Params) -> ApplyIfFiniteState:
        return ApplyIfFiniteState(zero_count(params), zero_count(params), transform.init(params))

    def update(
        updates: Updates, state: ApplyIfFiniteState, params: Params, *, grad_fn: GradFn | None = None
    ) -> tuple[Updates, ApplyIfFiniteState]:
        grads = updates
        updates, inner = inner_update(grads, state.inner, params, grad_fn=grad_fn)
        is_finite = torch.stack([leaf.isfinite().all() for leaf in tree.leaves((grads, updates))]).all()
        skipped = torch.where(is_finite, 0, state.skipped + 1)
        applies = is_finite | (skipped > max_skipped)
        total_skipped = state.total_skipped + (~is_finite).to(torch.int64)
        new_state = ApplyIfFiniteState(skipped, total_skipped, tree.where(applies, inner, state.inner))
        return tree.where(applies, updates, tree.zeros_like(updates)), new_state

    return GradientTransformation(init, update)


class LookaheadState(NamedTuple):
    step: Tensor
    slow_step_size: Tensor
    slow: Params
    inner: OptState


@checked
def lookahead(
    transform: GradientTransformation, *, sync_period: Count = 5, slow_step_size: float = 0.5
) -> GradientTransformation:
    """`transform` updates fast parameters, which are set to slow ones every `sync_period` updates.

    slow <- slow + slow_step_size (fast - slow); fast <- slow (Zhang et al., "Lookahead optimizer", arXiv 1907.08610,
    algorithm 1). What is evaluated are the fast ones, so end after a multiple of `sync_period` updates. Put it last in
    a chain: it must know what is added to the parameters.
    """
    inner_update = with_grad_fn(transform.update)

    def init(params: Params) -> LookaheadState:
        slow = tree.map(torch.clone, params)
        return LookaheadState(zero_count(params), hyperparameter(slow_step_size, params), slow, transform.init(params))

    def update(
        updates: Updates, state: LookaheadState, params: Params, *, grad_fn: GradFn | None = None
    ) -> tuple[Updates, LookaheadState]:
        step = state.step + 1
        (slow_step_size,) = cast_like(updates, state.slow_step_size)
        updates, inner = inner_update(updates, state.inner, params, grad_fn=grad_fn)
        new_slow = tree.map(lambda slow, p, u: torch.lerp(slow, p + u, slow_step_size), state.slow, params, updates)
        syncs = step % sync_period == 0
        updates = tree.where(syncs, tree.map(torch.sub, new_slow, params), updates)
        return updates, LookaheadState(step, state.slow_step_size, tree.where(syncs, new_slow, state.slow), inner)

    return GradientTransformation(init, update)


def keep_old_values(transform: GradientTransformation, params: Params) -> GradientTransformation:
    """`transform` for a step that writes its new state over the old one (`jit(donate=True)`).

    Its state may keep tensors that the update was given, such as the previous parameters. They are copied before the
    step writes over them.

    Args:
        transform: of the whole step.
        params: of the shapes and dtypes of those to come.
    """
    inner_update = with_grad_fn(transform.update)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # nothing is computed
        old = tree.map(mode.from_tensor, tree.with_own_memory((transform.init(params), params)))
        _, new = inner_update(tree.zeros_like(old[1]), *old, grad_fn=tree.zeros_like)
    old_storages = [tree.storage(leaf) for leaf in tree.leaves(old)]
    is_kept = [
        tree.storage(leaf) in old_storages and tree.storage(leaf) != own
        for leaf, own in zip(tree.leaves(new), old_storages, strict=False)
    ]
    if not any(is_kept):
        return transform

    def update(
        updates: Updates, state: OptState, params: Params, *, grad_fn: GradFn | None = None
    ) -> tuple[Updates, OptState]:
        updates, state = inner_update(updates, state, params, grad_fn=grad_fn)
        leaves = [_copy(leaf) if kept else leaf for leaf, kept in zip(tree.leaves(state), is_kept, strict=True)]
        return updates, tree.unflatten(state, leaves)

    return GradientTransformation(transform.init, update)


@torch.library.custom_op("backbones::copy", mutates_args=())
def _copy(leaf: Tensor) -> Tensor:
    """`clone` as an operator that inductor keeps: it drops a plain one, and then reads the overwritten tensor."""
    return leaf.clone()


@_copy.register_fake
def _(leaf: Tensor) -> Tensor:
    return torch.empty_like(leaf)
