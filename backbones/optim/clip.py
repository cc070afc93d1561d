"""Clipping. Symbols: g gradient (or update so far), p parameter."""

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.optim.base import GradientTransformation, stateless, stateless_with_tree_map
from backbones.types import Params, Updates


def clip_by_value(bound: float) -> GradientTransformation:
    """g <- g clamped to [-bound, bound]."""
    return stateless_with_tree_map(lambda g, p, bound: torch.clamp(g, -bound, bound), bound=bound)


def clip_by_block_rms(bound: float) -> GradientTransformation:
    """g <- g / max(1, rms(g) / bound) for each leaf, where rms(g) = sqrt(mean(g^2)).

    Source: Shazeer and Stern, "Adafactor", arXiv 1804.04235, section 6.
    """
    return stateless_with_tree_map(lambda g, p, bound: g / (rms(g) / bound).clamp(min=1.0), bound=bound)


def clip_by_global_norm(bound: float) -> GradientTransformation:
    """g <- g min(1, bound / |g|), where |g| is the norm of the whole tree.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", arXiv 1211.5063.
    """

    def clip(updates: Updates, params: Params, bound: Tensor) -> Updates:
        factor = (bound / tree.global_norm(updates)).clamp(max=1.0)
        return tree.map(lambda g: factor * g, updates)

    return stateless(clip, bound=bound)


def adaptive_clip(bound: float, *, eps: float = 1e-3) -> GradientTransformation:
    """AGC: g_i <- g_i min(1, bound max(|p_i|, eps) / |g_i|) for each output unit i: a row, a kernel, or a whole vector.

    Source: Brock et al., "High-performance large-scale image recognition without normalization", arXiv 2102.06171,
    equation 3.
    """

    def leaf(g: Tensor, p: Tensor, bound: Tensor, eps: Tensor) -> Tensor:
        max_norm = bound * torch.maximum(unit_norm(p), eps)
        return g * (max_norm / unit_norm(g).clamp(min=1e-6)).clamp(max=1.0)

    return stateless_with_tree_map(leaf, bound=bound, eps=eps)


def rms(leaf: Tensor) -> Tensor:
    """Root mean square of a leaf, 0-D."""
    return leaf.square().mean().sqrt()


def unit_norm(leaf: Tensor) -> Tensor:
    """The norm over the inputs of each output unit [R, 1, ...]; of a vector or a scalar the norm of the whole, 0-D."""
    if leaf.ndim <= 1:
        return torch.linalg.vector_norm(leaf)
    return torch.linalg.vector_norm(leaf, dim=tuple(range(1, leaf.ndim)), keepdim=True)
