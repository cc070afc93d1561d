"""Vyas et al., "SOAP: improving and stabilizing Shampoo using Adam", arXiv 2409.11321.

Shampoo's preconditioner has eigenvectors that turn slowly; SOAP is Adam in their basis. For a leaf as a matrix G [R,
C]:

    L <- b2 L + (1 - b2) G G^T       Q_L <- QR(L Q_L), an orthogonal iteration; likewise R and Q_R of G^T G
    G' = Q_L^T G Q_R                 Adam on G'           update = Q_L (...) Q_R^T

Differs from the paper in two ways. The bases begin as the identity, so that the first update is Adam's; the paper
leaves it out and begins with an eigenvalue decomposition. And they are not refreshed all at once every so many updates:
each update refreshes a part of them, so that updates take equal time and there is nothing to branch on.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.errors import InputError
from backbones.optim.base import GradientTransformation, as_leaves, hyperparameter, no_updates
from backbones.optim.matrix import as_matrix, from_matrix, matrix_shape
from backbones.types import Params, Updates

SHIFT = 1e-5
"""What is added to each eigenvalue of a covariance, relative to their sum. The covariance of the first few gradients is
singular; without a shift its null space would get a basis of rounding errors, with it the basis of before."""


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
    """Size n -> the L and R of that size, [how many, n, n]."""
    bases: dict[str, Tensor]
    """Size n -> the Q of that size, likewise."""


class _Side(NamedTuple):
    """One side of one leaf."""

    name: str
    dim: int
    """0 for the rows, 1 for the columns."""


def scale_by_soap(
    b1: float = 0.95, b2: float = 0.95, eps: float = 1e-8, *, refresh_every: int = 10, max_size: int = 1024
) -> GradientTransformation:
    """Adam in the eigenbasis of Shampoo's preconditioner.

    Args:
        b1: decay of the mean of G.
        b2: decay of the mean of G'^2 and of the covariances.
        eps: added to the denominator.
        refresh_every: updates in which every basis is refreshed at least once.
        max_size: sides of more than this many rows or columns keep the identity as their basis (section 4), and so do
            vectors, for which this is Adam.

    Raises:
        InputError: `refresh_every` is below 1.
    """
    if refresh_every < 1:
        raise InputError(f"refresh_every is {refresh_every}; it must be 1 or more")

    def init(params: Params) -> ScaleBySoapState:
        rates = [hyperparameter(value, params) for value in (b1, b2, eps)]
        nu = {name: torch.zeros_like(p if p.ndim < 2 else as_matrix(p)) for name, p in params.items()}
        like = tree.leaves(params)[0]
        identities = {
            size: torch.eye(int(size), dtype=like.dtype, device=like.device).repeat(len(sides), 1, 1)
            for size, sides in _sides_by_size(params, max_size).items()
        }
        covariances = tree.zeros_like(identities)
        return ScaleBySoapState(no_updates(params), *rates, tree.zeros_like(params), nu, covariances, identities)

    def update(updates: Updates, state: ScaleBySoapState, params: Params) -> tuple[Updates, ScaleBySoapState]:
        step, sides_by_size = state.step + 1, _sides_by_size(params, max_size)
        unbias = 1 - state.b1**step
        w1, w2, root_factor, root_offset = as_leaves(
            updates, 1 - state.b1, 1 - state.b2, unbias / (1 - state.b2**step).sqrt(), unbias * state.eps
        )
        grads = {name: as_matrix(g) if g.ndim > 1 else g for name, g in updates.items()}
        covariances, bases = {}, {}
        for size, sides in sides_by_size.items():
            products = torch.stack([_product(grads[side.name], side.dim) for side in sides])
            covariances[size] = torch.lerp(state.covariances[size], products, w2)
            bases[size] = _refresh(state.bases[size], covariances[size], state.step, refresh_every)

        basis_of = {side: bases[size][i] for size, sides in sides_by_size.items() for i, side in enumerate(sides)}
        mu = tree.map(lambda g, m: torch.lerp(m, g, w1), updates, state.mu)
        new_updates, nu = {}, {}
        for name, g in grads.items():
            left, right = basis_of.get(_Side(name, 0)), basis_of.get(_Side(name, 1))
            m = as_matrix(mu[name]) if g.ndim > 1 else mu[name]
            nu[name] = torch.lerp(state.nu[name], _turn(g, left, right).square(), w2)
            turned = _turn(m, left, right) / (nu[name].sqrt() * root_factor + root_offset)
            back = _turn(turned, _transposed(left), _transposed(right))
            new_updates[name] = from_matrix(back, updates[name]) if g.ndim > 1 else back
        return new_updates, state._replace(step=step, mu=mu, nu=nu, covariances=covariances, bases=bases)

    return GradientTransformation(init, update)


def _sides_by_size(params: Params, max_size: int) -> dict[str, list[_Side]]:
    """The sides that get a basis, by their size, which is a text because it is the name of leaves."""
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
    """Turn the next few of `bases` [K, n, n] towards the eigenvectors of their covariances: an orthogonal iteration."""
    num_bases = len(bases)
    count = -(-num_bases // refresh_every)
    turn = (step * count + torch.arange(count, device=step.device)) % num_bases
    covariances, turning = covariances[turn], bases[turn]
    shift = SHIFT * covariances.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[:, None, None]
    turned, _ = torch.linalg.qr(covariances @ turning + shift * turning)
    return bases.index_copy(0, turn, turned)


def _turn(matrix: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """left^T matrix right, where None stands for the identity."""
    matrix = matrix if left is None else left.mT @ matrix
    return matrix if right is None else matrix @ right


def _transposed(basis: Tensor | None) -> Tensor | None:
    return None if basis is None else basis.mT
