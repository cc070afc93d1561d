"""What a gradient transform is, and what transforms are written with."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.types import OptState, Params, Updates


class GradientTransformation(NamedTuple):
    """A pair of pure functions that turns gradients into better updates."""

    init: Callable[[Params], OptState]
    """`init(params) -> opt_state`: the memory of the transform before its first update."""

    update: Callable[[Updates, OptState, Params], tuple[Updates, OptState]]
    """`update(updates, opt_state, params) -> (updates, opt_state)`."""


class EmptyState(NamedTuple):
    """The memory of a transform that has none."""


def stateless(function: Callable[[Updates, Params], Updates]) -> GradientTransformation:
    """A transform that remembers nothing, from a function of `(updates, params)`."""

    def update(updates: Updates, state: EmptyState, params: Params) -> tuple[Updates, EmptyState]:
        return function(updates, params), state

    return GradientTransformation(lambda params: EmptyState(), update)


def identity() -> GradientTransformation:
    """g <- g."""
    return stateless(lambda updates, params: updates)


def hyperparameter(value: float, params: Params) -> Tensor:
    """A rate as a leaf of `opt_state`: 0-D float64, on the device of `params`.

    As a tensor it can change, be logged, saved and vmapped without compiling the step again; in float64 it is the
    Python float that `torch.optim` computes with.
    """
    return torch.tensor(value, dtype=torch.float64, device=tree.leaves(params)[0].device)


def no_updates(params: Params) -> Tensor:
    """A count of updates before the first one: 0-D int64."""
    return torch.zeros((), dtype=torch.int64, device=tree.leaves(params)[0].device)


def as_leaves(updates: Updates, *rates: Tensor) -> tuple[Tensor, ...]:
    """The rates in the dtype of the leaves, which is one dtype in the whole tree.

    What a rate is computed from stays float64; only the product with a leaf is rounded, and never widens it.
    """
    dtype = tree.leaves(updates)[0].dtype
    return tuple(rate.to(dtype) for rate in rates)
