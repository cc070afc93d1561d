"""Foret et al., "Sharpness-aware minimization for efficiently improving generalization", arXiv 2010.01412."""

from typing import NamedTuple

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.optim.base import GradFn, GradientTransformation, cast_like, hyperparameter
from backbones.types import Params, Updates


class SamState(NamedTuple):
    rho: Tensor


def sam(rho: float) -> GradientTransformation:
    """g <- the gradient at p + rho g / |g|, where the loss is about the largest within a distance of rho (equation 2).

    Its update computes a second gradient of the batch by `grad_fn`, and raises a ValueError if there is none.
    """

    def init(params: Params) -> SamState:
        return SamState(hyperparameter(rho, params))

    def update(
        updates: Updates, state: SamState, params: Params, *, grad_fn: GradFn | None = None
    ) -> tuple[Updates, SamState]:
        if grad_fn is None:
            raise ValueError(
                "sam computes a second gradient, but got no `grad_fn`; pass `update(..., grad_fn=...)`, and put sam "
                "outside `partition` and `masked`, whose transforms see only some of the leaves"
            )
        (distance,) = cast_like(updates, state.rho / (tree.global_norm(updates) + 1e-12))
        return grad_fn(tree.map(lambda p, g: torch.addcmul(p, g, distance), params, updates)), state

    return GradientTransformation(init, update)
