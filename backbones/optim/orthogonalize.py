"""Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks", kellerjordan.github.io, 2024.

Differs from it in that all matrices of one shape are iterated in one batch.
"""

import torch
from torch import Tensor

from backbones.optim.base import GradientTransformation, stateless
from backbones.optim.matrix import as_matrix, from_matrix, matrix_shape
from backbones.types import Params, Updates

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""(a, b, c) of X <- a X + (b A + c A^2) X with A = X X^T, chosen for the largest slope at 0."""

NUM_ITERATIONS = 5


def orthogonalize(dtype: torch.dtype | None = torch.bfloat16) -> GradientTransformation:
    """g <- sqrt(max(1, R / C)) U V^T approximately, where g = U S V^T is the singular value decomposition of [R, C].

    Five Newton-Schulz iterations bring the singular values into [0.7, 1.2], which works as well in practice. For leaves
    of two or more dimensions.

    Args:
        dtype: of the iteration; None for that of the leaves.
    """

    def update(updates: Updates, params: Params) -> Updates:
        names_by_shape: dict[tuple[int, int], list[str]] = {}
        for name, g in updates.items():
            names_by_shape.setdefault(matrix_shape(g), []).append(name)
        result = {}
        for (rows, columns), names in names_by_shape.items():
            leaves = [updates[name] for name in names]
            matrices = newton_schulz(torch.stack([as_matrix(g).to(dtype or g.dtype) for g in leaves]))
            matrices = max(1, rows / columns) ** 0.5 * matrices
            for name, g, matrix in zip(names, leaves, matrices.unbind(), strict=True):
                result[name] = from_matrix(matrix.to(g.dtype), g)
        return {name: result[name] for name in updates}

    return stateless(update)


def newton_schulz(matrices: Tensor) -> Tensor:
    """Matrices [K, R, C] with the same singular vectors and singular values near 1.

    Singular values below 0.003 of the norm of the matrix stay below 0.7.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
