"""The last step of every optimizer."""

from collections.abc import Callable

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.optim.base import GradientTransformation
from backbones.types import OptState, Params, Updates

Update = Callable[[Updates, OptState, Params], tuple[Params, OptState, Tensor]]
"""(grads, opt_state, params) -> (params, opt_state, norm of the updates)."""


def apply_updates(params: Params, updates: Updates) -> Params:
    """p + update, leaf by leaf; the updates of a chain already point downhill."""
    return tree.map(torch.add, params, updates)


def make_update(optimizer: GradientTransformation) -> Update:
    """From gradients to the next parameters: `optimizer.update`, then `apply_updates`."""

    def update(grads: Updates, opt_state: OptState, params: Params) -> tuple[Params, OptState, Tensor]:
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return apply_updates(params, updates), opt_state, tree.global_norm(updates)

    return update
