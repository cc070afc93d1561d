"""What a gradient transform is, and what transforms are written with.

In every state `step` is the number of updates so far, 0-D int64, and hyperparameters are 0-D float64.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.types import OptState, Params, Updates

GradFn = Callable[[Params], Updates]
"""The gradient of the same batch at other parameters: `grad_fn(params) -> grads`."""

InitFn = Callable[[Params], OptState]
"""`init(params) -> state`: the state before the first update."""

UpdateFn = Callable[[Updates, Any, Params], tuple[Updates, OptState]]
"""`update(updates, state, params) -> (updates, state)`: pure, its arguments are not modified."""

UpdateWithGradFn = Callable[..., tuple[Updates, OptState]]
"""`update(updates, state, params, grad_fn=grad_fn)`: an update that may compute more gradients of the batch."""


class GradientTransformation(NamedTuple):
    """A pair of pure functions that turns gradients into updates of the parameters."""

    init: InitFn
    update: UpdateFn


def with_grad_fn(update: UpdateFn) -> UpdateWithGradFn:
    """The update with a keyword `grad_fn`, which is ignored if `update` has no such parameter.

    A combinator calls this once for each of its transforms, when it is built.
    """
    if "grad_fn" in inspect.signature(update).parameters:
        return update
    return lambda updates, state, params, *, grad_fn=None: update(updates, state, params)


def apply_updates(params: Params, updates: Updates) -> Params:
    """p + u for each leaf; the updates of a complete optimizer have the minus sign already."""
    return tree.map(torch.add, params, updates)


def stateless(function: Callable[..., Updates], **hyperparameters: float) -> GradientTransformation:
    """A transform with no state but its hyperparameters, a dict by name.

    `function(updates, params, **hyperparameters) -> updates` gets them in the dtype of the updates.
    """

    def init(params: Params) -> dict[str, Tensor]:
        return {name: hyperparameter(value, params) for name, value in hyperparameters.items()}

    def update(updates: Updates, state: dict[str, Tensor], params: Params) -> tuple[Updates, dict[str, Tensor]]:
        scalars = dict(zip(state, cast_like(updates, *state.values()), strict=True))
        return function(updates, params, **scalars), state

    return GradientTransformation(init, update)


def stateless_with_tree_map(leaf: Callable[..., Tensor], **hyperparameters: float) -> GradientTransformation:
    """`stateless` for a function of one leaf, `leaf(g, p, **hyperparameters) -> update`."""

    def function(updates: Updates, params: Params, **scalars: Tensor) -> Updates:
        return tree.map(lambda g, p: leaf(g, p, **scalars), updates, params)

    return stateless(function, **hyperparameters)


def identity() -> GradientTransformation:
    """g <- g."""
    return stateless(lambda updates, params: updates)


def hyperparameter(value: float, params: Params) -> Tensor:
    """A hyperparameter as a leaf of `opt_state`: 0-D float64, on the device of `params`.

    As a tensor it can be changed, logged, saved and vmapped without recompiling the step; in float64 it has the
    precision of the Python float that `torch.optim` computes with.
    """
    return torch.tensor(value, dtype=torch.float64, device=tree.leaves(params)[0].device)


def zero_count(params: Params) -> Tensor:
    """A counter at 0: 0-D int64, on the device of `params`."""
    return torch.zeros((), dtype=torch.int64, device=tree.leaves(params)[0].device)


def cast_like(updates: Updates, *scalars: Tensor) -> tuple[Tensor, ...]:
    """The scalars in the dtype of the leaves, which is the same for all of them.

    Scalars are computed from hyperparameters in float64 and cast last, so that a product with a leaf keeps its dtype.
    """
    dtype = tree.leaves(updates)[0].dtype
    return tuple(scalar.to(dtype) for scalar in scalars)


def as_matrix(leaf: Tensor) -> Tensor:
    """A leaf [R, ...] of two or more dimensions as a matrix [R, C]; a kernel's columns are (height, width, channel).

    This is the order of kernels in memory (`channels_last`), so nothing is copied.
    """
    return leaf.movedim(1, -1).flatten(1)


def from_matrix(matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of `as_matrix`: [R, C] in the shape of `like`."""
    rows, channels, *others = like.shape
    return matrix.reshape(rows, *others, channels).movedim(-1, 1)
