"""Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks", kellerjordan.github.io, 2024."""

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.errors import InputError
from backbones.optim.base import GradientTransformation, as_matrix, from_matrix, stateless
from backbones.types import Params, Updates

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""(a, b, c) of X <- a X + (b A + c A^2) X with A = X X^T, chosen for the largest slope at 0."""


def orthogonalize(dtype: torch.dtype | None = torch.bfloat16) -> GradientTransformation:
    """g <- sqrt(max(1, R / C)) U V^T approximately, where g = U S V^T is the singular value decomposition of [R, C].

    Five Newton-Schulz iterations, in `dtype` or that of the leaves, bring the singular values into [0.7, 1.2], which
    works as well in practice. Matrices of one shape are one batch.

    Raises:
        InputError: (`update`) a leaf has fewer than two dimensions.
    """

    def update(updates: Updates, params: Params) -> Updates:
        if vectors := [name for name, leaf in updates.items() if leaf.ndim < 2]:
            raise InputError(
                f"orthogonalize got {', '.join(vectors[:3])} of fewer than two dimensions; give it matrices alone, by "
                "`partition` or `masked`"
            )
        matrices = tree.map(as_matrix, updates)
        names_by_shape: dict[torch.Size, list[str]] = {}
        for name, matrix in matrices.items():
            names_by_shape.setdefault(matrix.shape, []).append(name)
        result = {}
        for (rows, columns), names in names_by_shape.items():
            stacked = torch.stack([matrices[name].to(dtype or matrices[name].dtype) for name in names])
            stacked = max(1, rows / columns) ** 0.5 * newton_schulz(stacked)
            for name, matrix in zip(names, stacked.unbind(), strict=True):
                result[name] = from_matrix(matrix.to(updates[name].dtype), updates[name])
        return {name: result[name] for name in updates}

    return stateless(update)


def newton_schulz(matrices: Tensor) -> Tensor:
    """Matrices [K, R, C] with the same singular vectors and singular values near 1.

    Singular values below 0.0015 of the norm of the matrix stay below 0.7.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # in one pass over memory
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if is_tall else x
