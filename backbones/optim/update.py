"""The last step of every optimizer."""

from backbones.optim.base import map_updates
from backbones.types import Params, Updates


def apply_updates(params: Params, updates: Updates) -> Params:
    """p + update, leaf by leaf; the updates of a chain already point downhill."""
    return map_updates(lambda p, u: p + u, params, updates)
