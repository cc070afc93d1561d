"""Foret et al., "Sharpness-aware minimization for efficiently improving generalization", arXiv 2010.01412.

The gradient is taken where the loss is highest nearby: at p + rho g / |g| (eq. 2), where g is the gradient at p. The
second gradient is the step's to take, so this transform only leaves `rho` in the state, and the step asks `climb`
where.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.optim.base import GradientTransformation, as_leaves, hyperparameter
from backbones.types import OptState, Params, Updates


class SamState(NamedTuple):
    rho: Tensor


def sam(rho: float) -> GradientTransformation:
    """Have the train step take the gradient at p + rho g / |g|; the gradient itself passes as it is."""

    def init(params: Params) -> SamState:
        return SamState(hyperparameter(rho, params))

    def update(updates: Updates, state: SamState, params: Params) -> tuple[Updates, SamState]:
        del params
        return updates, state

    return GradientTransformation(init, update)


def climb(opt_state: OptState, params: Params, grads: Updates) -> Params | None:
    """p + rho g / |g|, where the step is to take its gradient; None if there is no `sam` in the chain."""
    states = tree.find(opt_state, SamState)
    if not states:
        return None
    (distance,) = as_leaves(grads, states[0].rho / (tree.global_norm(grads) + 1e-12))
    return tree.map(lambda p, g: torch.addcmul(p, g, distance), params, grads)
