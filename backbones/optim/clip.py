"""Transforms that hold updates within bounds. Symbols: g gradient (or update so far), p parameter."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.optim.base import GradientTransformation, as_leaves, hyperparameter
from backbones.types import Params, Updates


class ClipState(NamedTuple):
    bound: Tensor


def clip_by_value(bound: float) -> GradientTransformation:
    """g <- g held within [-bound, bound]."""

    def clip(updates: Updates, bound: Tensor, params: Params) -> Updates:
        del params
        return tree.map(lambda g: torch.clamp(g, -bound, bound), updates)

    return _clip(bound, clip)


def clip_by_block_rms(bound: float) -> GradientTransformation:
    """g <- g min(1, bound / rms(g)), leaf by leaf (Shazeer and Stern, Adafactor, arXiv 1804.04235, section 6)."""

    def clip(updates: Updates, bound: Tensor, params: Params) -> Updates:
        del params
        return tree.map(lambda g: g / (_rms(g) / bound).clamp(min=1.0), updates)

    return _clip(bound, clip)


def clip_by_global_norm(bound: float) -> GradientTransformation:
    """g <- g min(1, bound / |g|), where |g| is the norm over the whole tree.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", arXiv 1211.5063.
    """

    def clip(updates: Updates, bound: Tensor, params: Params) -> Updates:
        del params
        factor = (bound / tree.global_norm(updates)).clamp(max=1.0)
        return tree.map(lambda g: g * factor, updates)

    return _clip(bound, clip)


def adaptive_clip(bound: float, *, eps: float = 1e-3) -> GradientTransformation:
    """AGC: g_i <- g_i min(1, bound max(|p_i|, eps) / |g_i|) for each unit i: a row, a kernel, a whole vector.

    Source: Brock et al., "High-performance large-scale image recognition without normalization", arXiv 2102.06171, eq.
    3.
    """

    def clip(updates: Updates, bound: Tensor, params: Params) -> Updates:
        def leaf(g: Tensor, p: Tensor) -> Tensor:
            most = bound * _unit_norm(p).clamp(min=eps)
            return g * (most / _unit_norm(g).clamp(min=1e-6)).clamp(max=1.0)

        return tree.map(leaf, updates, params)

    return _clip(bound, clip)


def _clip(bound: float, clip: Callable[[Updates, Tensor, Params], Updates]) -> GradientTransformation:
    def init(params: Params) -> ClipState:
        return ClipState(hyperparameter(bound, params))

    def update(updates: Updates, state: ClipState, params: Params) -> tuple[Updates, ClipState]:
        (bound,) = as_leaves(updates, state.bound)
        return clip(updates, bound, params), state

    return GradientTransformation(init, update)


def _rms(leaf: Tensor) -> Tensor:
    return leaf.square().mean().sqrt()


def _unit_norm(leaf: Tensor) -> Tensor:
    """The norm over all that goes into one output; of a vector or a scalar the whole norm."""
    if leaf.ndim <= 1:
        return torch.linalg.vector_norm(leaf)
    return torch.linalg.vector_norm(leaf, dim=tuple(range(1, leaf.ndim)), keepdim=True)
