"""Vyas et al., "SOAP: improving and stabilizing Shampoo using Adam", arXiv 2409.11321.

SOAP is Adam in the eigenbasis of Shampoo's preconditioner, which changes slowly. For a leaf as a matrix G [R, C]:

    L <- b2 L + (1 - b2) G G^T       Q_L <- QR(L Q_L), an orthogonal iteration; likewise R and Q_R from G^T G
    G' = Q_L^T G Q_R                 Adam on G'; the update is Q_L (...) Q_R^T

Differs from the paper in two ways. The bases are initialised with the identity, so that the first update is Adam's; the
paper skips it and starts from an eigendecomposition. And instead of refreshing all bases once every so many updates,
each update refreshes some of them, so that all updates take the same time and there is no control flow.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.errors import Count, checked
from backbones.optim.base import GradientTransformation, cast_like, hyperparameter, zero_count
from backbones.optim.matrix import as_matrix, from_matrix, matrix_shape
from backbones.types import Params, Updates

SHIFT = 1e-5
"""Added to each eigenvalue of a covariance, relative to their sum. The covariance of the first few gradients is
singular: without a shift the basis of its null space would be rounding errors, with it that basis stays as it is."""


class ScaleBySoapState(NamedTuple):
    step: Tensor
    """Updates so far, 0-D int64."""
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


class _Side(NamedTuple):
    """The rows or the columns of one leaf."""

    name: str
    dim: int
    """0 for the rows, 1 for the columns."""


@checked
def scale_by_soap(
    b1: float = 0.95, b2: float = 0.95, eps: float = 1e-8, *, refresh_every: Count = 10, max_size: int = 1024
) -> GradientTransformation:
    """Adam in the eigenbasis of Shampoo's preconditioner.

    Args:
        b1: decay of the mean of G.
        b2: decay of the mean of G'^2 and of the covariances.
        eps: added to the denominator.
        refresh_every: number of updates in which every basis is refreshed at least once.
        max_size: where there are more rows or columns, their basis stays the identity (section 4). For vectors this is
            always Adam.
    """

    def init(params: Params) -> ScaleBySoapState:
        nu = {name: torch.zeros_like(p if p.ndim < 2 else as_matrix(p)) for name, p in params.items()}
        like = tree.leaves(params)[0]
        identities = {
            size: torch.eye(int(size), dtype=like.dtype, device=like.device).repeat(len(sides), 1, 1)
            for size, sides in _sides_by_size(params, max_size).items()
        }
        return ScaleBySoapState(
            step=zero_count(params),
            b1=hyperparameter(b1, params),
            b2=hyperparameter(b2, params),
            eps=hyperparameter(eps, params),
            mu=tree.zeros_like(params),
            nu=nu,
            covariances=tree.zeros_like(identities),
            bases=identities,
        )

    def update(updates: Updates, state: ScaleBySoapState, params: Params) -> tuple[Updates, ScaleBySoapState]:
        step, sides = state.step + 1, _sides_by_size(params, max_size)
        one_minus_b1, one_minus_b2, eps = cast_like(updates, 1 - state.b1, 1 - state.b2, state.eps)
        correction1, correction2 = cast_like(updates, 1 - state.b1**step, 1 - state.b2**step)
        grads = {name: as_matrix(g) if g.ndim > 1 else g for name, g in updates.items()}
        covariances, bases = {}, {}
        for size in sides:
            products = torch.stack([_product(grads[side.name], side.dim) for side in sides[size]])
            covariances[size] = torch.lerp(state.covariances[size], products, one_minus_b2)
            bases[size] = _refresh(state.bases[size], covariances[size], state.step, refresh_every)

        basis_of = {side: bases[size][i] for size in sides for i, side in enumerate(sides[size])}
        mu = tree.map(lambda g, m: torch.lerp(m, g, one_minus_b1), updates, state.mu)
        new_updates, nu = {}, {}
        for name, g in grads.items():
            left, right = basis_of.get(_Side(name, 0)), basis_of.get(_Side(name, 1))
            nu[name] = torch.lerp(state.nu[name], _rotate(g, left, right).square(), one_minus_b2)
            mu_hat = (as_matrix(mu[name]) if g.ndim > 1 else mu[name]) / correction1
            nu_hat = nu[name] / correction2
            rotated = _rotate(mu_hat, left, right) / (nu_hat.sqrt() + eps)
            update = _rotate(rotated, _transposed(left), _transposed(right))
            new_updates[name] = from_matrix(update, updates[name]) if g.ndim > 1 else update
        return new_updates, state._replace(step=step, mu=mu, nu=nu, covariances=covariances, bases=bases)

    return GradientTransformation(init, update)


def _sides_by_size(params: Params, max_size: int) -> dict[str, list[_Side]]:
    """The sides that have a basis, by their size as a string: the sizes are names of leaves in the state."""
    by_size: dict[str, list[_Side]] = {}
    for name, p in params.items():
        for dim, size in enumerate(matrix_shape(p) if p.ndim > 1 else ()):
            if 1 < size <= max_size:
                by_size.setdefault(str(size), []).append(_Side(name, dim))
    return by_size


def _product(g: Tensor, dim: int) -> Tensor:
    """G G^T for the rows, G^T G for the columns."""
    return g @ g.mT if dim == 0 else g.mT @ g


def _refresh(bases: Tensor, covariances: Tensor, step: Tensor, refresh_every: int) -> Tensor:
    """One orthogonal iteration for the next ceil(K / refresh_every) of `bases` [K, n, n], towards the eigenvectors."""
    num_bases = len(bases)
    count = -(-num_bases // refresh_every)
    index = (step * count + torch.arange(count, device=step.device)) % num_bases
    covariances, old = covariances[index], bases[index]
    shift = SHIFT * covariances.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[:, None, None]
    new, _ = torch.linalg.qr(covariances @ old + shift * old)
    return bases.index_copy(0, index, new)


def _rotate(matrix: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """left^T matrix right, where None is the identity."""
    matrix = matrix if left is None else left.mT @ matrix
    return matrix if right is None else matrix @ right


def _transposed(basis: Tensor | None) -> Tensor | None:
    return None if basis is None else basis.mT
