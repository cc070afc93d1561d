"""Transforms made of transforms."""

from backbones.optim.base import GradientTransformation
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
