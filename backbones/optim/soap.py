"""Vyas et al., "SOAP: improving and stabilizing Shampoo using Adam", arXiv 2409.11321.

SOAP is Adam in the eigenbasis of Shampoo's preconditioner, which changes slowly. For a leaf as a matrix G [R, C]:

    G' = Q_L^T G Q_R                 Adam on G'; the update is Q_L (...) Q_R^T
    L <- b2 L + (1 - b2) G G^T       Q_L <- QR(L Q_L), an orthogonal iteration; likewise R and Q_R from G^T G

As in algorithm 3, an update uses the bases of the gradients before it. Two things differ from the paper. The bases are
initialised with the identity, so that the first update is Adam's; the paper skips it and starts from an
eigendecomposition. And instead of refreshing all bases once every few updates, each update refreshes some of them, so
that all updates take the same time and there is no control flow.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.optim.base import GradientTransformation, as_matrix, cast_like, from_matrix, hyperparameter, zero_count
from backbones.ranges import Count, checked
from backbones.types import Params, Updates

SHIFT = 1e-5
"""Added to each eigenvalue of a covariance, relative to their sum. The covariance of the first few gradients is
singular: without a shift the basis of its null space would be rounding errors, with it that basis stays as it is."""


class ScaleBySoapState(NamedTuple):
    step: Tensor
    b1: Tensor
    b2: Tensor
    eps: Tensor
    mu: Updates
    """Running mean of G."""
    nu: Updates
    """Running mean of G'^2."""
    covariances: dict[str, Tensor]
    """Size n -> all L and R of that size, [K, n, n]."""
    bases: dict[str, Tensor]
    """Size n -> their Q, [K, n, n]."""


@checked
def scale_by_soap(
    b1: float = 0.95, b2: float = 0.95, eps: float = 1e-8, *, refresh_every: Count = 10, max_size: int = 1024
) -> GradientTransformation:
    """Adam in the eigenbasis of Shampoo's preconditioner; for vectors it is Adam.

    Every basis is refreshed at least once in `refresh_every` updates. Where there are more than `max_size` rows or
    columns, their basis stays the identity (section 4).
    """

    def init(params: Params) -> ScaleBySoapState:
        like, matrices = tree.leaves(params)[0], _as_matrices(params)
        bases = {
            size: torch.eye(int(size), dtype=like.dtype, device=like.device).repeat(len(sides), 1, 1)
            for size, sides in _sides_by_size(matrices, max_size).items()
        }
        scalars = hyperparameter(b1, params), hyperparameter(b2, params), hyperparameter(eps, params)
        mu, nu, covariances = (tree.zeros_like(each) for each in (params, matrices, bases))
        return ScaleBySoapState(zero_count(params), *scalars, mu, nu, covariances, bases)

    def update(updates: Updates, state: ScaleBySoapState, params: Params) -> tuple[Updates, ScaleBySoapState]:
        step = state.step + 1
        one_minus_b1, one_minus_b2, eps = cast_like(updates, 1 - state.b1, 1 - state.b2, state.eps)
        correction1, correction2 = cast_like(updates, 1 - state.b1**step, 1 - state.b2**step)
        grads = _as_matrices(updates)
        covariances, bases = {}, {}
        basis_of: dict[tuple[str, int], Tensor] = {}
        for size, sides in _sides_by_size(grads, max_size).items():
            matrices = [grads[name] if dim == 0 else grads[name].mT for name, dim in sides]
            products = torch.stack([matrix @ matrix.mT for matrix in matrices])
            covariances[size] = torch.lerp(state.covariances[size], products, one_minus_b2)
            bases[size] = _refresh(state.bases[size], covariances[size], state.step, refresh_every)
            basis_of |= dict(zip(sides, state.bases[size].unbind(), strict=True))

        mu = tree.map(lambda g, m: torch.lerp(m, g, one_minus_b1), updates, state.mu)
        mu_matrices, new_updates, nu = _as_matrices(mu), {}, {}
        inverse_of = {side: basis.mT for side, basis in basis_of.items()}
        for name, g in grads.items():
            nu[name] = torch.lerp(state.nu[name], _rotate(g, name, basis_of).square(), one_minus_b2)
            mu_hat, nu_hat = mu_matrices[name] / correction1, nu[name] / correction2
            update = _rotate(_rotate(mu_hat, name, basis_of) / (nu_hat.sqrt() + eps), name, inverse_of)
            new_updates[name] = from_matrix(update, updates[name]) if g.ndim > 1 else update
        return new_updates, state._replace(step=step, mu=mu, nu=nu, covariances=covariances, bases=bases)

    return GradientTransformation(init, update)


def _as_matrices(leaves: Params) -> Params:
    """The leaves as matrices; vectors stay as they are."""
    return tree.map(lambda leaf: as_matrix(leaf) if leaf.ndim > 1 else leaf, leaves)


def _sides_by_size(matrices: Params, max_size: int) -> dict[str, list[tuple[str, int]]]:
    """Size -> the sides of that size: (name, 0) for the rows of a leaf and (name, 1) for its columns.

    The sizes are strings: they are names of leaves in the state.
    """
    by_size: dict[str, list[tuple[str, int]]] = {}
    for name, matrix in matrices.items():
        for dim, size in enumerate(matrix.shape if matrix.ndim > 1 else ()):
            if 1 < size <= max_size:
                by_size.setdefault(str(size), []).append((name, dim))
    return by_size


def _refresh(bases: Tensor, covariances: Tensor, step: Tensor, refresh_every: int) -> Tensor:
    """One orthogonal iteration for the next ceil(K / refresh_every) of `bases` [K, n, n], towards the eigenvectors.

    At least in float32: there is no QR decomposition in 16 bits.
    """
    num_bases = len(bases)
    count = -(-num_bases // refresh_every)
    index = (step * count + torch.arange(count, device=step.device)) % num_bases
    dtype = torch.promote_types(bases.dtype, torch.float32)
    covariances, old = covariances[index].to(dtype), bases[index].to(dtype)
    shift = SHIFT * covariances.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[:, None, None]
    new, _ = torch.linalg.qr(covariances @ old + shift * old)
    return bases.index_copy(0, index, new.to(bases.dtype))


def _rotate(matrix: Tensor, name: str, basis_of: dict[tuple[str, int], Tensor]) -> Tensor:
    """Q_L^T matrix Q_R with the bases of a leaf; a side without a basis is not rotated."""
    left, right = basis_of.get((name, 0)), basis_of.get((name, 1))
    matrix = matrix if left is None else left.mT @ matrix
    return matrix if right is None else matrix @ right
