"""What a gradient transform is, and what transforms are written with."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.types import OptState, Params, Updates

GradFn = Callable[[Params], Updates]
"""The gradient of the same batch at other parameters: `grad_fn(params) -> grads`."""


class InitFn(Protocol):
    """`init(params) -> state`: the state before the first update."""

    def __call__(self, params: Params, /) -> OptState: ...


class UpdateFn(Protocol):
    """`update(updates, state, params) -> (updates, state)`: pure, its arguments are not modified."""

    def __call__(self, updates: Updates, state: Any, params: Params, /) -> tuple[Updates, OptState]: ...


class UpdateWithGradFn(UpdateFn, Protocol):
    """An update that may compute more gradients of the batch: `update(updates, state, params, grad_fn=grad_fn)`."""

    def __call__(
        self, updates: Updates, state: Any, params: Params, /, *, grad_fn: GradFn | None = None
    ) -> tuple[Updates, OptState]: ...


class GradientTransformation(NamedTuple):
    """A pair of pure functions that turns gradients into updates of the parameters."""

    init: InitFn
    update: UpdateFn


def with_grad_fn(update: UpdateFn) -> UpdateWithGradFn:
    """The update with a keyword `grad_fn`, which is ignored if `update` has no such parameter.

    A combinator calls this once for each of its transforms, when it is built.
    """
    if "grad_fn" in inspect.signature(update).parameters:
        return cast(UpdateWithGradFn, update)

    def without_grad_fn(
        updates: Updates, state: Any, params: Params, /, *, grad_fn: GradFn | None = None
    ) -> tuple[Updates, OptState]:
        return update(updates, state, params)

    return without_grad_fn


def apply_updates(params: Params, updates: Updates) -> Params:
    """p + u for each leaf; the updates of a complete optimizer already point downhill."""
    return tree.map(torch.add, params, updates)


class EmptyState(NamedTuple):
    """The state of a transform that has none."""


def stateless(function: Callable[[Updates, Params], Updates]) -> GradientTransformation:
    """A transform without state, from a function `(updates, params) -> updates`."""

    def update(updates: Updates, state: EmptyState, params: Params) -> tuple[Updates, EmptyState]:
        return function(updates, params), state

    return GradientTransformation(lambda params: EmptyState(), update)


def identity() -> GradientTransformation:
    """g <- g."""
    return stateless(lambda updates, params: updates)


State = TypeVar("State", bound=tuple[Tensor, ...])


def with_hyperparameters(
    function: Callable[[Updates, State, Params], Updates], state_type: Callable[..., State], *values: float
) -> GradientTransformation:
    """A transform whose state is its hyperparameters and nothing else.

    Args:
        function: `(updates, hyperparameters, params) -> updates`; the hyperparameters have the dtype of the updates.
        state_type: NamedTuple of the hyperparameters.
        values: of the hyperparameters, in the order of its fields.
    """

    def init(params: Params) -> State:
        return state_type(*(hyperparameter(value, params) for value in values))

    def update(updates: Updates, state: State, params: Params) -> tuple[Updates, State]:
        return function(updates, state_type(*cast_like(updates, *state)), params), state

    return GradientTransformation(init, update)


def hyperparameter(value: float, params: Params) -> Tensor:
    """A hyperparameter as a leaf of `opt_state`: 0-D float64, on the device of `params`.

    As a tensor it can be changed, logged, saved and vmapped without recompiling the step; in float64 it has the
    precision of the Python float that `torch.optim` computes with.
    """
    return torch.tensor(value, dtype=torch.float64, device=tree.leaves(params)[0].device)


def zero_count(params: Params) -> Tensor:
    """A counter at 0, such as the number of updates so far: 0-D int64, on the device of `params`."""
    return torch.zeros((), dtype=torch.int64, device=tree.leaves(params)[0].device)


def cast_like(updates: Updates, *scalars: Tensor) -> tuple[Tensor, ...]:
    """The scalars in the dtype of the leaves, which is the same for all of them.

    Scalars are computed from hyperparameters in float64 and cast last, so that a product with a leaf keeps its dtype.
    """
    dtype = tree.leaves(updates)[0].dtype
    return tuple(scalar.to(dtype) for scalar in scalars)
