"""Transforms that scale the update of each parameter, or of each leaf, by statistics of its gradients.

Symbols: g gradient (or update so far), p parameter, t = 1, 2, ... step; x_hat = x / (1 - b^t) is the running mean x
with its bias corrected. Running means are `torch.lerp(mean, g, 1 - b)`, which is b mean + (1 - b) g.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.optim.base import GradientTransformation, cast_like, hyperparameter, stateless_with_tree_map, zero_count
from backbones.optim.clip import rms
from backbones.types import Params, Updates


class ScaleByAdamState(NamedTuple):
    step: Tensor
    b1: Tensor
    b2: Tensor
    eps: Tensor
    mu: Updates
    """Running mean of g."""
    nu: Updates
    """Running mean of g^2, or of (g - mu)^2."""


def _init_adam(b1: float, b2: float, eps: float, params: Params) -> ScaleByAdamState:
    scalars = hyperparameter(b1, params), hyperparameter(b2, params), hyperparameter(eps, params)
    return ScaleByAdamState(zero_count(params), *scalars, tree.zeros_like(params), tree.zeros_like(params))


def scale_by_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, *, nesterov: bool = False
) -> GradientTransformation:
    """mu <- b1 mu + (1 - b1) g; nu <- b2 nu + (1 - b2) g^2; the update is mu_hat / (sqrt(nu_hat) + eps).

    With Nesterov momentum mu_hat is b1 mu / (1 - b1^(t + 1)) + (1 - b1) g / (1 - b1^t).

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", arXiv 1412.6980, algorithm 1; Dozat,
    "Incorporating Nesterov momentum into Adam", ICLR 2016 workshop, algorithm 2, but as in optax without its factor
    b2 of nu_hat.
    """

    def update(updates: Updates, state: ScaleByAdamState, params: Params) -> tuple[Updates, ScaleByAdamState]:
        step = state.step + 1
        b1, one_minus_b1, one_minus_b2, eps = cast_like(updates, state.b1, 1 - state.b1, 1 - state.b2, state.eps)
        correction1, correction2 = cast_like(updates, 1 - state.b1**step, 1 - state.b2**step)
        (next_correction1,) = cast_like(updates, 1 - state.b1 ** (step + 1))

        def leaf(g: Tensor, mu: Tensor, nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mu = torch.lerp(mu, g, one_minus_b1)
            nu = torch.lerp(nu, g * g, one_minus_b2)
            mu_hat = b1 * mu / next_correction1 + one_minus_b1 * g / correction1 if nesterov else mu / correction1
            return _ratio(mu_hat, nu / correction2, eps), mu, nu

        updates, mu, nu = tree.map_to_several(leaf, updates, state.mu, state.nu)
        return updates, state._replace(step=step, mu=mu, nu=nu)

    return GradientTransformation(lambda params: _init_adam(b1, b2, eps, params), update)


def _ratio(mu_hat: Tensor, nu_hat: Tensor, eps: Tensor) -> Tensor:
    """mu_hat / (sqrt(nu_hat) + eps), written over `nu_hat`, which nobody else may need."""
    return mu_hat / (nu_hat.sqrt_() + eps)  # not `add_`: the derivative of the root is made of the root


def scale_by_belief(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-16) -> GradientTransformation:
    """mu <- b1 mu + (1 - b1) g; nu <- b2 nu + (1 - b2) (g - mu)^2 + eps; the update is mu_hat / (sqrt(nu_hat) + eps).

    Source: Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed gradients",
    arXiv 2010.07468, algorithm 2.
    """

    def update(updates: Updates, state: ScaleByAdamState, params: Params) -> tuple[Updates, ScaleByAdamState]:
        step = state.step + 1
        one_minus_b1, one_minus_b2, eps = cast_like(updates, 1 - state.b1, 1 - state.b2, state.eps)
        correction1, correction2 = cast_like(updates, 1 - state.b1**step, 1 - state.b2**step)

        def leaf(g: Tensor, mu: Tensor, nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mu = torch.lerp(mu, g, one_minus_b1)
            nu = torch.lerp(nu, (g - mu).square(), one_minus_b2) + eps
            return _ratio(mu / correction1, nu / correction2, eps), mu, nu

        updates, mu, nu = tree.map_to_several(leaf, updates, state.mu, state.nu)
        return updates, state._replace(step=step, mu=mu, nu=nu)

    return GradientTransformation(lambda params: _init_adam(b1, b2, eps, params), update)


def scale_by_radam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> GradientTransformation:
    """Adam with its variance rectified: r(t) mu_hat / (sqrt(nu_hat) + eps) once that is tractable, and mu_hat before.

    Source: Liu et al., "On the variance of the adaptive learning rate and beyond", arXiv 1908.03265, algorithm 2, with
    the threshold of the authors' code: tractable is rho >= 5.
    """

    def update(updates: Updates, state: ScaleByAdamState, params: Params) -> tuple[Updates, ScaleByAdamState]:
        step = state.step + 1
        one_minus_b1, one_minus_b2, eps = cast_like(updates, 1 - state.b1, 1 - state.b2, state.eps)
        correction1, correction2 = cast_like(updates, 1 - state.b1**step, 1 - state.b2**step)
        rho_inf = 2 / (1 - state.b2) - 1
        rho = rho_inf - 2 * step * state.b2**step / (1 - state.b2**step)
        is_tractable = rho >= 5
        r_square = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
        (r,) = cast_like(updates, torch.where(is_tractable, r_square, 1.0).sqrt())  # no NaN, also in the derivative

        def leaf(g: Tensor, mu: Tensor, nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mu = torch.lerp(mu, g, one_minus_b1)
            nu = torch.lerp(nu, g * g, one_minus_b2)
            mu_hat, nu_hat = mu / correction1, nu / correction2
            return torch.where(is_tractable, _ratio(r * mu_hat, nu_hat, eps), mu_hat), mu, nu

        updates, mu, nu = tree.map_to_several(leaf, updates, state.mu, state.nu)
        return updates, state._replace(step=step, mu=mu, nu=nu)

    return GradientTransformation(lambda params: _init_adam(b1, b2, eps, params), update)


class ScaleByRmsState(NamedTuple):
    step: Tensor
    b2: Tensor
    eps: Tensor
    nu: Updates
    """Running mean of g^2."""


def scale_by_rms(b2: float = 0.9, eps: float = 1e-8, *, debias: bool = False) -> GradientTransformation:
    """nu <- b2 nu + (1 - b2) g^2; the update is g / (sqrt(nu) + eps), or debiased g / (sqrt(nu_hat) + eps).

    Source: Tieleman and Hinton, "Lecture 6.5 - RMSProp", Coursera 2012.
    """

    def init(params: Params) -> ScaleByRmsState:
        scalars = hyperparameter(b2, params), hyperparameter(eps, params)
        return ScaleByRmsState(zero_count(params), *scalars, tree.zeros_like(params))

    def update(updates: Updates, state: ScaleByRmsState, params: Params) -> tuple[Updates, ScaleByRmsState]:
        step = state.step + 1
        one_minus_b2, eps, correction2 = cast_like(updates, 1 - state.b2, state.eps, 1 - state.b2**step)

        def leaf(g: Tensor, nu: Tensor) -> tuple[Tensor, Tensor]:
            nu = torch.lerp(nu, g * g, one_minus_b2)
            nu_hat = nu / correction2 if debias else nu
            return g / (nu_hat.sqrt() + eps), nu

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
        one_minus_b1, one_minus_b2 = cast_like(updates, 1 - state.b1, 1 - state.b2)

        def leaf(g: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
            return torch.lerp(mu, g, one_minus_b1).sign(), torch.lerp(mu, g, one_minus_b2)

        updates, mu = tree.map_to_several(leaf, updates, state.mu)
        return updates, state._replace(mu=mu)

    return GradientTransformation(init, update)


class Factors(NamedTuple):
    """Running means of g^2 over one of the two largest dimensions of a leaf; their outer product approximates nu."""

    row: Tensor
    """Mean over the largest dimension."""
    column: Tensor
    """Mean over the second largest."""


class ScaleByAdafactorState(NamedTuple):
    step: Tensor
    decay_rate: Tensor
    eps: Tensor
    nu: dict[str, Tensor | Factors]
    """Running mean of g^2 + eps: factored for large leaves."""


def scale_by_adafactor(
    decay_rate: float = 0.8, eps: float = 1e-30, *, min_dim_size_to_factor: int = 128
) -> GradientTransformation:
    """g / sqrt(nu), where nu is the running mean of g^2 + eps with the decay 1 - t^-decay_rate, in two factors.

    The two largest dimensions of a leaf are factored if both have at least `min_dim_size_to_factor` elements: a matrix
    of R rows and C columns then has a state of R + C numbers, and nu = row column / mean(row).

    Source: Shazeer and Stern, "Adafactor: adaptive learning rates with sublinear memory cost", arXiv 1804.04235,
    algorithm 4 with section 7.
    """

    def init(params: Params) -> ScaleByAdafactorState:
        def leaf(p: Tensor) -> Tensor | Factors:
            dims = _largest_dims(p)
            if len(dims) < 2 or p.shape[dims[0]] < min_dim_size_to_factor:
                return torch.zeros_like(p)
            row_dim, column_dim = dims
            return Factors(row=torch.zeros_like(p.sum(column_dim)), column=torch.zeros_like(p.sum(row_dim)))

        scalars = hyperparameter(decay_rate, params), hyperparameter(eps, params)
        return ScaleByAdafactorState(zero_count(params), *scalars, tree.map(leaf, params))

    def update(updates: Updates, state: ScaleByAdafactorState, params: Params) -> tuple[Updates, ScaleByAdafactorState]:
        step = state.step + 1
        weight, eps = cast_like(updates, step**-state.decay_rate, state.eps)

        def leaf(g: Tensor, nu: Tensor | Factors) -> tuple[Tensor, Tensor | Factors]:
            square = g * g + eps
            if isinstance(nu, Tensor):
                nu = torch.lerp(nu, square, weight)
                return g / nu.sqrt(), nu
            row_dim, column_dim = _largest_dims(g)
            row = torch.lerp(nu.row, square.mean(column_dim), weight).unsqueeze(column_dim)
            column = torch.lerp(nu.column, square.mean(row_dim), weight).unsqueeze(row_dim)
            # One root for each factor: their product may underflow.
            update = g / (row / row.mean(row_dim, keepdim=True)).sqrt() / column.sqrt()
            return update, Factors(row.squeeze(column_dim), column.squeeze(row_dim))

        updates, nu = tree.map_to_several(leaf, updates, state.nu)
        return updates, state._replace(step=step, nu=nu)

    return GradientTransformation(init, update)


def _largest_dims(leaf: Tensor) -> list[int]:
    """The second largest dimension of a leaf and the largest; fewer than two if it has fewer."""
    return sorted(range(leaf.ndim), key=lambda dim: leaf.shape[dim])[-2:]


def scale_by_param_block_rms(min_rms: float = 1e-3) -> GradientTransformation:
    """g <- g max(rms(p), min_rms) for each leaf: steps in proportion to the parameters (Adafactor, section 8)."""
    return stateless_with_tree_map(lambda g, p, min_rms: g * torch.maximum(rms(p), min_rms), min_rms=min_rms)


def scale_by_trust_ratio(trust_coefficient: float = 1.0, *, eps: float = 0.0) -> GradientTransformation:
    """g <- trust_coefficient |p| / (|g| + eps) g for each leaf; a leaf with |p| = 0 or |g| = 0 keeps its g.

    Source: You, Gitman and Ginsburg, "Large batch training of convolutional networks" (LARS), arXiv 1708.03888,
    equation 6; You et al., "Large batch optimization for deep learning" (LAMB), arXiv 1904.00962, algorithm 2.
    """

    def leaf(g: Tensor, p: Tensor, trust_coefficient: Tensor, eps: Tensor) -> Tensor:
        g_norm, p_norm = torch.linalg.vector_norm(g), torch.linalg.vector_norm(p)
        ratio = trust_coefficient * p_norm / (g_norm + eps)
        return g * torch.where((g_norm > 0) & (p_norm > 0), ratio, torch.ones_like(ratio))

    return stateless_with_tree_map(leaf, trust_coefficient=trust_coefficient, eps=eps)
