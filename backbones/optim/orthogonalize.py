"""Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks", kellerjordan.github.io, 2024.

Differs from there in that matrices of one shape go through the iteration together.
"""

import torch
from torch import Tensor

from backbones.optim.base import GradientTransformation, stateless
from backbones.optim.matrix import as_matrix, from_matrix, matrix_shape
from backbones.types import Params, Updates

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""(a, b, c) of X <- a X + (b A + c A^2) X with A = X X^T: as steep at 0 as it can be."""

NUM_ITERATIONS = 5


def orthogonalize(dtype: torch.dtype | None = torch.bfloat16) -> GradientTransformation:
    """g <- sqrt(max(1, R / C)) U V^T, roughly, where U S V^T = g is the singular value decomposition of [R, C].

    Roughly: five Newton-Schulz iterations bring the singular values into [0.7, 1.2], which is as good in practice. For
    leaves of two or more dimensions.

    Args:
        dtype: of the iteration; None for that of the leaves.
    """

    def update(updates: Updates, params: Params) -> Updates:
        del params
        names_by_shape: dict[tuple[int, int], list[str]] = {}
        for name, g in updates.items():
            names_by_shape.setdefault(matrix_shape(g), []).append(name)
        result = {}
        for (rows, columns), names in names_by_shape.items():
            leaves = [updates[name] for name in names]
            matrices = newton_schulz(torch.stack([as_matrix(g).to(dtype or g.dtype) for g in leaves]))
            if rows > columns:
                matrices = matrices * (rows / columns) ** 0.5
            for name, g, matrix in zip(names, leaves, matrices.unbind(), strict=True):
                result[name] = from_matrix(matrix.to(g.dtype), g)
        return {name: result[name] for name in updates}

    return stateless(update)


def newton_schulz(matrices: Tensor) -> Tensor:
    """Matrices [K, R, C] with the same singular vectors, and singular values near 1.

    Those of a matrix of norm 1 that are below 0.003 stay below 0.7.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
