"""Hyperparameters in the state of an optimizer: every one is a 0-D leaf, to be read, set, or scheduled."""

from typing import NamedTuple

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.errors import InputError
from backbones.optim.base import GradFn, GradientTransformation, with_grad_fn, zero_count
from backbones.optim.schedule import Schedule
from backbones.types import OptState, Params, Updates


def hyperparams(opt_state: OptState) -> dict[str, Tensor]:
    """The hyperparameters by path, such as `1/b2`: the 0-D floating-point leaves that can be set.

    Those that are named after a parameter, such as its moments, cannot.
    """
    leaves = tree.named_leaves(opt_state)
    scalars = {path: leaf for path, leaf in leaves.items() if leaf.ndim == 0 and leaf.is_floating_point()}
    mark = torch.empty(())
    marked = tree.named_leaves(tree.replace_fields(opt_state, {_name(path): mark for path in scalars}))
    return {path: leaf for path, leaf in scalars.items() if marked[path] is mark}


def set_hyperparams(opt_state: OptState, **values: Tensor) -> OptState:
    """The state with every hyperparameter of those names set, in float64: `set_hyperparams(opt_state, b2=tensor)`.

    One that `inject_hyperparams` schedules is overwritten by the next update.

    Raises:
        InputError: there is no hyperparameter of that name, or it is the `learning_rate` that each update computes.
    """
    names = {_name(path) for path in hyperparams(opt_state)}
    for name in values:
        if name not in names:
            raise InputError(f"no hyperparameter is called {name!r}; there are: {', '.join(sorted(names))}")
    if "learning_rate" in values and "base_learning_rate" in names:
        raise InputError("learning_rate is what the latest update used, and is overwritten; set base_learning_rate")
    return tree.replace_fields(opt_state, {name: value.to(torch.float64) for name, value in values.items()})


def current_learning_rate(opt_state: OptState) -> Tensor | None:
    """The learning rate of the latest update: the leaf called `learning_rate`; the largest of several, None of none."""
    rates = [leaf for path, leaf in tree.named_leaves(opt_state).items() if _name(path) == "learning_rate"]
    return torch.stack(rates).max() if len(rates) > 1 else next(iter(rates), None)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


class InjectHyperparamsState(NamedTuple):
    step: Tensor
    inner: OptState


def inject_hyperparams(transform: GradientTransformation, **schedules: Schedule) -> GradientTransformation:
    """Schedule hyperparameters of `transform`: before each update, those of that name are set to schedule(step).

    Here a schedule gives the value itself, not a factor as in `scale_by_learning_rate`.

    Raises:
        InputError: (`init`) there is no hyperparameter of that name.
    """
    inner_update = with_grad_fn(transform.update)

    def scheduled(inner: OptState, step: Tensor) -> OptState:
        return set_hyperparams(inner, **{name: schedule(step) for name, schedule in schedules.items()})

    def init(params: Params) -> InjectHyperparamsState:
        step = zero_count(params)
        return InjectHyperparamsState(step, scheduled(transform.init(params), step))

    def update(
        updates: Updates, state: InjectHyperparamsState, params: Params, *, grad_fn: GradFn | None = None
    ) -> tuple[Updates, InjectHyperparamsState]:
        updates, inner = inner_update(updates, scheduled(state.inner, state.step), params, grad_fn=grad_fn)
        return updates, InjectHyperparamsState(state.step + 1, inner)

    return GradientTransformation(init, update)
