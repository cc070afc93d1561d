"""What a gradient transform is."""

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


def hyperparameter(value: float, params: Params) -> Tensor:
    """A rate as a leaf of `opt_state`: 0-D float64, on the device of `params`.

    As a tensor it can change, be logged, saved and vmapped without compiling the step again; in float64 it is the
    Python float that `torch.optim` computes with.
    """
    return torch.tensor(value, dtype=torch.float64, device=tree.leaves(params)[0].device)


def map_updates(function: Callable[..., Tensor], updates: Updates, *rest: Updates) -> Updates:
    """`tree.map` that keeps the dtypes of `updates`: a float64 rate would widen 0-D float32 leaves."""
    return tree.map(lambda leaf, *others: function(leaf, *others).to(leaf.dtype), updates, *rest)
