"""Combinators: transforms one after another, or different ones for different leaves."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from backbones.errors import InputError
from backbones.optim.base import GradFn, GradientTransformation, UpdateWithGradFn, identity, with_grad_fn
from backbones.optim.label import Mask
from backbones.optim.schedule import Schedule
from backbones.types import OptState, Params, Updates


def chain(*transforms: GradientTransformation) -> GradientTransformation:
    """Apply `transforms` one after another; the state is the tuple of their states.

    The `grad_fn` of each transform is composed with the transforms before it, in their old states: after
    `clip_by_global_norm`, the second gradient of `sam` is clipped too.
    """
    update_fns = [with_grad_fn(transform.update) for transform in transforms]

    def init(params: Params) -> OptState:
        return tuple(transform.init(params) for transform in transforms)

    def update(
        updates: Updates, state: OptState, params: Params, *, grad_fn: GradFn | None = None
    ) -> tuple[Updates, OptState]:
        new_states = []
        for update_fn, old_state in zip(update_fns, state, strict=True):
            updates, new_state = update_fn(updates, old_state, params, grad_fn=grad_fn)
            new_states.append(new_state)
            if grad_fn is not None:
                grad_fn = _composed(update_fn, old_state, grad_fn)
        return updates, tuple(new_states)

    return GradientTransformation(init, update)


def _composed(update_fn: UpdateWithGradFn, state: OptState, grad_fn: GradFn) -> GradFn:
    """`grad_fn` followed by an update, whose new state is discarded."""
    return lambda params: update_fn(grad_fn(params), state, params, grad_fn=grad_fn)[0]


def named_chain(**transforms: GradientTransformation) -> GradientTransformation:
    """`chain` with a dict of states by name as its state; checkpoints use these names too."""
    chained = chain(*transforms.values())
    update_fn = with_grad_fn(chained.update)

    def init(params: Params) -> OptState:
        return dict(zip(transforms, chained.init(params), strict=True))

    def update(
        updates: Updates, state: OptState, params: Params, *, grad_fn: GradFn | None = None
    ) -> tuple[Updates, OptState]:
        updates, new_states = update_fn(updates, tuple(state[name] for name in transforms), params, grad_fn=grad_fn)
        return updates, dict(zip(transforms, new_states, strict=True))

    return GradientTransformation(init, update)


def partition(
    transforms: Mapping[str, GradientTransformation], label: Callable[[str, Tensor], str]
) -> GradientTransformation:
    """Different transforms for different leaves: a leaf gets `transforms[label(name, leaf)]`.

    Each transform sees only its leaves, in `init` and in `update`, and no `grad_fn`, which needs all leaves. The state
    is a dict by label.
    """

    def names_by_label(params: Params) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {key: [] for key in transforms}
        for name, leaf in params.items():
            key = label(name, leaf)
            if key not in transforms:
                raise InputError(f"the label {key!r} of {name} has no transform; there are: {', '.join(transforms)}")
            names[key].append(name)
        return {key: selected for key, selected in names.items() if selected}

    def init(params: Params) -> OptState:
        return {key: transforms[key].init(_select(params, names)) for key, names in names_by_label(params).items()}

    def update(updates: Updates, state: OptState, params: Params) -> tuple[Updates, OptState]:
        new_updates: Updates = {}
        new_state: dict[str, Any] = {}
        for key, names in names_by_label(params).items():
            part, new_state[key] = transforms[key].update(_select(updates, names), state[key], _select(params, names))
            new_updates |= part
        return _select(new_updates, updates), new_state

    return GradientTransformation(init, update)


def masked(transform: GradientTransformation, mask: Mask) -> GradientTransformation:
    """`transform` for the leaves that the mask selects; the updates of the others stay as they are."""
    transforms = {"masked": transform, "rest": identity()}
    return partition(transforms, lambda name, leaf: "masked" if mask(name, leaf) else "rest")


def with_rates(
    make: Callable[[Schedule], GradientTransformation], schedule: Schedule, rates: Mapping[str, float]
) -> GradientTransformation:
    """`make(schedule)`, with the learning rate of each leaf multiplied by `rates[name]`.

    There is one transform for each rate, so that those whose update is not proportional to the rate, such as
    schedule-free ones, see the rate of their leaves. So the norm of a whole tree, as in `clip_by_global_norm`, is that
    of the leaves of one rate within `make`; `--clip` comes before, and takes all.
    """
    labels = {rate: f"lr x {rate}" for rate in rates.values()}
    if set(labels) == {1.0}:
        return make(schedule)

    def scaled(rate: float) -> Schedule:
        return lambda step: rate * schedule(step)

    return partition(
        {label: make(scaled(rate)) for rate, label in labels.items()}, lambda name, leaf: labels[rates[name]]
    )


def _select(leaves: Params, names: Iterable[str]) -> Params:
    return {name: leaves[name] for name in names}
