"""Vectors that are trees: the linear algebra of `hessian.py` and `influence.py`."""

from collections.abc import Callable

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.types import Params


def dot(x: Params, y: Params) -> Tensor:
    """Inner product, 0-D."""
    return torch.stack([(a * b).sum() for a, b in zip(tree.leaves(x), tree.leaves(y), strict=True)]).sum()


def add_scaled(x: Params, factor: Tensor | float, y: Params) -> Params:
    """x + factor y."""
    return tree.map(lambda a, b: a + factor * b, x, y)


def unit(x: Params) -> Params:
    """x / |x|."""
    norm = tree.global_norm(x)
    return tree.map(lambda a: a / norm, x)


def conjugate_gradient(matvec: Callable[[Params], Params], b: Params, tolerance: float = 1e-4) -> Params:
    """x with |A x - b| <= tolerance |b|, where matvec(x) is A x, and A is symmetric and positive definite."""
    x, residual, direction, square = tree.zeros_like(b), b, b, dot(b, b)
    while square > tolerance**2 * dot(b, b):
        product = matvec(direction)
        step = square / dot(direction, product)
        x, residual = add_scaled(x, step, direction), add_scaled(residual, -step, product)
        previous, square = square, dot(residual, residual)
        direction = add_scaled(residual, square / previous, direction)
    return x
