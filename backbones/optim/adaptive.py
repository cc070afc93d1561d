"""Transforms that give each parameter, or each leaf, a step size of its own.

Symbols: g gradient (or update so far), p parameter, t = 1, 2, ... the update, ^ unbiased: x^ = x / (1 - b^t).
"""

from typing import NamedTuple

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.optim.base import GradientTransformation, as_leaves, hyperparameter, no_updates, stateless
from backbones.types import Params, Updates


class ScaleByAdamState(NamedTuple):
    step: Tensor
    """Updates so far, 0-D int64."""
    b1: Tensor
    b2: Tensor
    eps: Tensor
    mu: Updates
    """Running mean of g."""
    nu: Updates
    """Running mean of g^2, or of (g - mu)^2."""


def _init_adam(b1: float, b2: float, eps: float, params: Params) -> ScaleByAdamState:
    rates = [hyperparameter(value, params) for value in (b1, b2, eps)]
    return ScaleByAdamState(no_updates(params), *rates, mu=tree.zeros_like(params), nu=tree.zeros_like(params))


def scale_by_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, *, nesterov: bool = False
) -> GradientTransformation:
    """mu <- b1 mu + (1 - b1) g, nu <- b2 nu + (1 - b2) g^2; the update is mu^ / (sqrt(nu^) + eps).

    With Nesterov's look-ahead, b1 mu / (1 - b1^(t+1)) + (1 - b1) g^ stands in the place of mu^.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", arXiv 1412.6980, algorithm 1; Dozat,
    "Incorporating Nesterov momentum into Adam", ICLR 2016 workshop, algorithm 2.
    """

    def update(updates: Updates, state: ScaleByAdamState, params: Params) -> tuple[Updates, ScaleByAdamState]:
        del params
        step, b1, b2, eps = state.step + 1, state.b1, state.b2, state.eps
        # Both sides of the quotient are multiplied by what makes mu unbiased, which saves a pass over memory.
        unbias = 1 - b1**step
        w1, w2, root_factor, root_offset, ahead = as_leaves(
            updates, 1 - b1, 1 - b2, unbias / (1 - b2**step).sqrt(), unbias * eps, b1 * unbias / (1 - b1 ** (step + 1))
        )

        def leaf(g: Tensor, m: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            m = torch.lerp(m, g, w1)
            n = torch.lerp(n, g * g, w2)
            root = n.sqrt().mul_(root_factor).add_(root_offset)
            return (torch.addcmul(g * w1, m, ahead) if nesterov else m) / root, m, n

        updates, mu, nu = tree.map_to_several(leaf, updates, state.mu, state.nu)
        return updates, state._replace(step=step, mu=mu, nu=nu)

    return GradientTransformation(lambda params: _init_adam(b1, b2, eps, params), update)


def scale_by_belief(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-16) -> GradientTransformation:
    """Adam whose nu is the running mean of (g - mu)^2, to which eps is added at each update, as under the root.

    Source: Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed gradients",
    arXiv 2010.07468, algorithm 2.
    """

    def update(updates: Updates, state: ScaleByAdamState, params: Params) -> tuple[Updates, ScaleByAdamState]:
        del params
        step, b1, b2, eps = state.step + 1, state.b1, state.b2, state.eps
        unbias = 1 - b1**step
        w1, w2, root_factor, root_offset, eps = as_leaves(
            updates, 1 - b1, 1 - b2, unbias / (1 - b2**step).sqrt(), unbias * eps, eps
        )

        def leaf(g: Tensor, m: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            m = torch.lerp(m, g, w1)
            surprise = g - m
            n = torch.lerp(n, surprise * surprise, w2).add_(eps)
            return m / n.sqrt().mul_(root_factor).add_(root_offset), m, n

        updates, mu, nu = tree.map_to_several(leaf, updates, state.mu, state.nu)
        return updates, state._replace(step=step, mu=mu, nu=nu)

    return GradientTransformation(lambda params: _init_adam(b1, b2, eps, params), update)


def scale_by_radam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> GradientTransformation:
    """Adam times r(t), the rectification of its variance; as long as that is not tractable (rho < 5), mu^ alone.

    Source: Liu et al., "On the variance of the adaptive learning rate and beyond", arXiv 1908.03265, algorithm 2, with
    the threshold 5 of the authors' code.
    """

    def update(updates: Updates, state: ScaleByAdamState, params: Params) -> tuple[Updates, ScaleByAdamState]:
        del params
        step, b1, b2, eps = state.step + 1, state.b1, state.b2, state.eps
        rho_inf = 2 / (1 - b2) - 1
        rho = rho_inf - 2 * step * b2**step / (1 - b2**step)
        tractable = rho >= 5
        r = torch.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        # mu^ alone is a quotient too, by a root that counts 0 times.
        unbias = 1 - b1**step
        root_factor = torch.where(tractable, unbias / r / (1 - b2**step).sqrt(), 0)
        root_offset = torch.where(tractable, unbias / r * eps, unbias)
        w1, w2, root_factor, root_offset = as_leaves(updates, 1 - b1, 1 - b2, root_factor, root_offset)

        def leaf(g: Tensor, m: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            m = torch.lerp(m, g, w1)
            n = torch.lerp(n, g * g, w2)
            return m / n.sqrt().mul_(root_factor).add_(root_offset), m, n

        updates, mu, nu = tree.map_to_several(leaf, updates, state.mu, state.nu)
        return updates, state._replace(step=step, mu=mu, nu=nu)

    return GradientTransformation(lambda params: _init_adam(b1, b2, eps, params), update)


class ScaleByRmsState(NamedTuple):
    step: Tensor
    """Updates so far, 0-D int64."""
    b2: Tensor
    eps: Tensor
    nu: Updates
    """Running mean of g^2."""


def scale_by_rms(b2: float = 0.9, eps: float = 1e-8, *, debias: bool = False) -> GradientTransformation:
    """nu <- b2 nu + (1 - b2) g^2; the update is g / (sqrt(nu) + eps), or with nu^ in the place of nu.

    Source: Tieleman and Hinton, "Lecture 6.5 - RMSProp", Coursera 2012.
    """

    def init(params: Params) -> ScaleByRmsState:
        rates = [hyperparameter(value, params) for value in (b2, eps)]
        return ScaleByRmsState(no_updates(params), *rates, nu=tree.zeros_like(params))

    def update(updates: Updates, state: ScaleByRmsState, params: Params) -> tuple[Updates, ScaleByRmsState]:
        del params
        step = state.step + 1
        weight, eps, unbias = as_leaves(updates, 1 - state.b2, state.eps, (1 - state.b2**step).rsqrt())

        def leaf(g: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
            n = torch.lerp(n, g * g, weight)
            root = n.sqrt()
            return g / (root.mul_(unbias) if debias else root).add_(eps), n

        updates, nu = tree.map_to_several(leaf, updates, state.nu)
        return updates, state._replace(step=step, nu=nu)

    return GradientTransformation(init, update)


class ScaleByLionState(NamedTuple):
    b1: Tensor
    b2: Tensor
    mu: Updates
    """Running mean of g."""


def scale_by_lion(b1: float = 0.9, b2: float = 0.99) -> GradientTransformation:
    """The update is sign(b1 mu + (1 - b1) g); then mu <- b2 mu + (1 - b2) g.

    Source: Chen et al., "Symbolic discovery of optimization algorithms", arXiv 2302.06675, algorithm 2.
    """

    def init(params: Params) -> ScaleByLionState:
        return ScaleByLionState(hyperparameter(b1, params), hyperparameter(b2, params), tree.zeros_like(params))

    def update(updates: Updates, state: ScaleByLionState, params: Params) -> tuple[Updates, ScaleByLionState]:
        del params
        w1, w2 = as_leaves(updates, 1 - state.b1, 1 - state.b2)

        def leaf(g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
            return torch.lerp(m, g, w1).sign_(), torch.lerp(m, g, w2)

        updates, mu = tree.map_to_several(leaf, updates, state.mu)
        return updates, state._replace(mu=mu)

    return GradientTransformation(init, update)


class Factors(NamedTuple):
    """Running means of g^2 over one of the two largest dimensions of a leaf; their outer product stands for it."""

    row: Tensor
    """Without the largest dimension."""
    column: Tensor
    """Without the second largest."""


class ScaleByAdafactorState(NamedTuple):
    step: Tensor
    """Updates so far, 0-D int64."""
    decay_rate: Tensor
    eps: Tensor
    nu: dict[str, Tensor | Factors]
    """Running mean of g^2 + eps: whole for small leaves, in factors for large ones."""


def scale_by_adafactor(
    decay_rate: float = 0.8, eps: float = 1e-30, *, min_dim_size_to_factor: int = 128
) -> GradientTransformation:
    """g / sqrt(nu), where nu is the running mean of g^2 with a decay of 1 - t^-decay_rate, kept in two factors.

    For a matrix of R rows and C columns that is R + C numbers and not R C. The two largest dimensions are factored,
    where both have `min_dim_size_to_factor` or more.

    Source: Shazeer and Stern, "Adafactor: adaptive learning rates with sublinear memory cost", arXiv 1804.04235,
    algorithm 4 with section 7.
    """

    def init(params: Params) -> ScaleByAdafactorState:
        def leaf(p: Tensor) -> Tensor | Factors:
            dims = _factored_dims(p, min_dim_size_to_factor)
            return Factors(*(torch.zeros_like(p.sum(dim)) for dim in reversed(dims))) if dims else torch.zeros_like(p)

        rates = [hyperparameter(value, params) for value in (decay_rate, eps)]
        return ScaleByAdafactorState(no_updates(params), *rates, nu=tree.map(leaf, params))

    def update(updates: Updates, state: ScaleByAdafactorState, params: Params) -> tuple[Updates, ScaleByAdafactorState]:
        del params
        step = state.step + 1
        weight, eps = as_leaves(updates, step**-state.decay_rate, state.eps)

        def leaf(g: Tensor, n: Tensor | Factors) -> tuple[Tensor, Tensor | Factors]:
            square = (g * g).add_(eps)
            if not isinstance(n, Factors):
                n = torch.lerp(n, square, weight)
                return g * n.rsqrt(), n
            column_dim, row_dim = _factored_dims(g, min_dim_size_to_factor)
            row = torch.lerp(n.row, square.mean(row_dim), weight)
            column = torch.lerp(n.column, square.mean(column_dim), weight)
            mean = row.mean(column_dim - (row_dim < column_dim), keepdim=True)
            row_factor, column_factor = (row / mean).rsqrt().unsqueeze(row_dim), column.rsqrt().unsqueeze(column_dim)
            return g * row_factor * column_factor, Factors(row, column)

        updates, nu = tree.map_to_several(leaf, updates, state.nu)
        return updates, state._replace(step=step, nu=nu)

    return GradientTransformation(init, update)


def _factored_dims(leaf: Tensor, min_size: int) -> tuple[int, int] | None:
    """The second largest dimension of a leaf and the largest; None if one of them is too small, or missing."""
    dims = sorted(range(leaf.ndim), key=lambda dim: leaf.shape[dim])[-2:]
    return (dims[0], dims[1]) if len(dims) == 2 and leaf.shape[dims[0]] >= min_size else None


def scale_by_param_block_rms(min_rms: float = 1e-3) -> GradientTransformation:
    """g <- g max(rms(p), min_rms), leaf by leaf: steps in proportion to what they change (Adafactor, section 8)."""

    def leaf(g: Tensor, p: Tensor) -> Tensor:
        return g * p.square().mean().sqrt().clamp(min=min_rms)

    return stateless(lambda updates, params: tree.map(leaf, updates, params))


class ScaleByTrustRatioState(NamedTuple):
    trust_coefficient: Tensor


def scale_by_trust_ratio(trust_coefficient: float = 1.0, *, eps: float = 0.0) -> GradientTransformation:
    """g <- trust_coefficient |p| / (|g| + eps) g, leaf by leaf; a leaf whose |p| or |g| is 0 keeps its g.

    Source: You, Gitman and Ginsburg, "Large batch training of convolutional networks" (LARS), arXiv 1708.03888, eq. 6;
    You et al., "Large batch optimization for deep learning" (LAMB), arXiv 1904.00962, algorithm 2.
    """

    def init(params: Params) -> ScaleByTrustRatioState:
        return ScaleByTrustRatioState(hyperparameter(trust_coefficient, params))

    def update(
        updates: Updates, state: ScaleByTrustRatioState, params: Params
    ) -> tuple[Updates, ScaleByTrustRatioState]:
        (coefficient,) = as_leaves(updates, state.trust_coefficient)

        def leaf(g: Tensor, p: Tensor) -> Tensor:
            g_norm, p_norm = torch.linalg.vector_norm(g), torch.linalg.vector_norm(p)
            ratio = coefficient * p_norm / (g_norm + eps)
            return g * torch.where((g_norm > 0) & (p_norm > 0), ratio, torch.ones_like(ratio))

        return tree.map(leaf, updates, params), state

    return GradientTransformation(init, update)
