"""Transforms made of transforms: one after the other, or each on its own part of the tree."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from backbones.optim.base import GradientTransformation, identity
from backbones.types import OptState, Params, Updates


def chain(*transforms: GradientTransformation) -> GradientTransformation:
    """Apply `transforms` one after the other; the state is the tuple of their states."""

    def init(params: Params) -> OptState:
        return tuple(transform.init(params) for transform in transforms)

    def update(updates: Updates, state: OptState, params: Params) -> tuple[Updates, OptState]:
        new_state = []
        for transform, transform_state in zip(transforms, state, strict=True):
            updates, transform_state = transform.update(updates, transform_state, params)
            new_state.append(transform_state)
        return updates, tuple(new_state)

    return GradientTransformation(init, update)


def named_chain(**transforms: GradientTransformation) -> GradientTransformation:
    """`chain` whose state is a dict of the transforms' states by their names, in checkpoints too."""
    names = list(transforms)
    chained = chain(*transforms.values())

    def init(params: Params) -> OptState:
        return dict(zip(names, chained.init(params), strict=True))

    def update(updates: Updates, state: OptState, params: Params) -> tuple[Updates, OptState]:
        updates, new_state = chained.update(updates, tuple(state[name] for name in names), params)
        return updates, dict(zip(names, new_state, strict=True))

    return GradientTransformation(init, update)


def partition(
    transforms: Mapping[str, GradientTransformation], label: Callable[[str, Tensor], str]
) -> GradientTransformation:
    """Different transforms for different leaves: that of `transforms` which `label(name, leaf)` names.

    Each transform sees its own leaves only, in `init` and in `update`; the state is a dict by label.
    """

    def parts(params: Params) -> dict[str, list[str]]:
        names_by_label: dict[str, list[str]] = {key: [] for key in transforms}
        for name, leaf in params.items():
            names_by_label[label(name, leaf)].append(name)
        return {key: names for key, names in names_by_label.items() if names}

    def init(params: Params) -> OptState:
        return {key: transforms[key].init(_select(params, names)) for key, names in parts(params).items()}

    def update(updates: Updates, state: OptState, params: Params) -> tuple[Updates, OptState]:
        new_updates, new_state = {}, {}
        for key, names in parts(params).items():
            part, new_state[key] = transforms[key].update(_select(updates, names), state[key], _select(params, names))
            new_updates |= part
        return _select(new_updates, updates), new_state

    return GradientTransformation(init, update)


def masked(transform: GradientTransformation, mask: Callable[[str, Tensor], bool]) -> GradientTransformation:
    """`transform` for the leaves for which `mask(name, leaf)` is true; the others pass as they are."""
    transforms = {"masked": transform, "rest": identity()}
    return partition(transforms, lambda name, leaf: "masked" if mask(name, leaf) else "rest")


def _select(leaves: Params, names: Iterable[str]) -> Params:
    return {name: leaves[name] for name in names}
