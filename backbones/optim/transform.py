"""Gradient transforms that do one thing each. Symbols: g gradient (or update so far), p parameter, t = 1, 2, ... step.

Running means are `torch.lerp(mean, g, 1 - decay)`, which is decay mean + (1 - decay) g.
"""

import zlib
from typing import NamedTuple

import torch
from torch import Tensor

import backbones.distributed as distributed
import backbones.random as random
import backbones.tree as tree
from backbones.errors import InputError
from backbones.optim.base import (
    GradFn,
    GradientTransformation,
    cast_like,
    hyperparameter,
    stateless,
    stateless_with_tree_map,
    zero_count,
)
from backbones.optim.label import Mask, everything
from backbones.optim.schedule import Schedule
from backbones.types import OptState, Params, Updates


def scale(factor: float) -> GradientTransformation:
    """g <- factor g."""
    return stateless_with_tree_map(lambda g, p, factor: factor * g, factor=factor)


class ScaleByScheduleState(NamedTuple):
    step: Tensor


def scale_by_schedule(schedule: Schedule) -> GradientTransformation:
    """g <- schedule(t - 1) g."""

    def init(params: Params) -> ScaleByScheduleState:
        return ScaleByScheduleState(zero_count(params))

    def update(updates: Updates, state: ScaleByScheduleState, params: Params) -> tuple[Updates, ScaleByScheduleState]:
        (factor,) = cast_like(updates, schedule(state.step))
        return tree.map(lambda g: factor * g, updates), ScaleByScheduleState(state.step + 1)

    return GradientTransformation(init, update)


class ScaleByLearningRateState(NamedTuple):
    step: Tensor
    base_learning_rate: Tensor
    """What the schedule multiplies."""
    learning_rate: Tensor
    """That of the latest update; 0 before the first."""


def scale_by_learning_rate(learning_rate: float, schedule: Schedule) -> GradientTransformation:
    """g <- -learning_rate schedule(t - 1) g: the descent step."""

    def init(params: Params) -> ScaleByLearningRateState:
        base_learning_rate = hyperparameter(learning_rate, params)
        return ScaleByLearningRateState(zero_count(params), base_learning_rate, torch.zeros_like(base_learning_rate))

    def update(updates: Updates, state: ScaleByLearningRateState, params: Params) -> tuple[Updates, OptState]:
        learning_rate = state.base_learning_rate * schedule(state.step)
        (factor,) = cast_like(updates, -learning_rate)
        updates = tree.map(lambda g: factor * g, updates)
        return updates, state._replace(step=state.step + 1, learning_rate=learning_rate)

    return GradientTransformation(init, update)


class TraceState(NamedTuple):
    decay: Tensor
    trace: Updates


def trace(decay: float, *, nesterov: bool = False) -> GradientTransformation:
    """Momentum: m <- g + decay m; the update is m, or g + decay m with Nesterov momentum.

    Source: Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013.
    """
    if nesterov and decay == 0:
        distributed.warn0_once("nesterov has no effect with a momentum of 0")

    def init(params: Params) -> TraceState:
        return TraceState(hyperparameter(decay, params), tree.zeros_like(params))

    def update(updates: Updates, state: TraceState, params: Params) -> tuple[Updates, TraceState]:
        (decay,) = cast_like(updates, state.decay)
        trace = tree.map(lambda g, m: torch.addcmul(g, decay, m), updates, state.trace)
        updates = tree.map(lambda g, m: torch.addcmul(g, decay, m), updates, trace) if nesterov else trace
        return updates, TraceState(state.decay, trace)

    return GradientTransformation(init, update)


class EmaState(NamedTuple):
    step: Tensor
    decay: Tensor
    ema: Updates


def ema(decay: float, *, debias: bool = True) -> GradientTransformation:
    """Running mean of the updates: m <- decay m + (1 - decay) g; the update is m, or debiased m / (1 - decay^t)."""

    def init(params: Params) -> EmaState:
        return EmaState(zero_count(params), hyperparameter(decay, params), tree.zeros_like(params))

    def update(updates: Updates, state: EmaState, params: Params) -> tuple[Updates, EmaState]:
        step = state.step + 1
        weight, correction = cast_like(updates, 1 - state.decay, 1 - state.decay**step)
        mean = tree.map(lambda g, m: torch.lerp(m, g, weight), updates, state.ema)
        updates = tree.map(lambda m: m / correction, mean) if debias else mean
        return updates, EmaState(step, state.decay, mean)

    return GradientTransformation(init, update)


def add_decayed_weights(weight_decay: float, mask: Mask = everything) -> GradientTransformation:
    """g <- g + weight_decay p, for the leaves that the mask selects.

    At the beginning of a chain this is L2 regularisation, just before the learning rate decoupled weight decay
    (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).
    """

    def update(updates: Updates, params: Params, weight_decay: Tensor) -> Updates:
        decayed = {name: torch.addcmul(updates[name], weight_decay, p) for name, p in params.items() if mask(name, p)}
        return updates | decayed

    return stateless(update, weight_decay=weight_decay)


class AddNoiseState(NamedTuple):
    step: Tensor
    key: Tensor
    """Random key, 0-D int64; never changes."""
    eta: Tensor
    gamma: Tensor


def add_noise(eta: float, gamma: float, seed: int) -> GradientTransformation:
    """g <- g + normal noise of variance eta / t^gamma, a function of the seed, t, and the name and position.

    Source: Neelakantan et al., "Adding gradient noise improves learning for very deep networks", arXiv 1511.06807,
    equation 1.
    """

    def init(params: Params) -> AddNoiseState:
        step = zero_count(params)
        key = random.key(seed, device=step.device)
        return AddNoiseState(step, key, hyperparameter(eta, params), hyperparameter(gamma, params))

    def update(updates: Updates, state: AddNoiseState, params: Params) -> tuple[Updates, AddNoiseState]:
        step = state.step + 1
        (std,) = cast_like(updates, (state.eta / step**state.gamma).sqrt())
        noisy = {}
        for name, g in updates.items():
            positions = torch.arange(g.numel(), device=g.device).reshape(g.shape)
            # not fold_in(key, positions): inductor multiplies the positions in Python, without wrap-around
            of_leaf = random.fold_in(random.fold_in(state.key, step), _number_of(name))
            noise = random.normal(random.fold_in(of_leaf ^ positions, 0))
            noisy[name] = g + std * noise.to(g.dtype)
        return noisy, state._replace(step=step)

    return GradientTransformation(init, update)


def _number_of(name: str) -> int:
    """An integer in [0, 2^32) for a name, equal in every process."""
    return zlib.crc32(name.encode())


# Dynamo cannot trace zlib. This is `torch.compiler.assume_constant_result`, which takes a second to import Dynamo.
_number_of._dynamo_marked_constant = True  # type: ignore[attr-defined]


def scale_by_sign() -> GradientTransformation:
    """g <- sign(g) (Bernstein et al., "signSGD", arXiv 1802.04434)."""
    return stateless_with_tree_map(lambda g, p: torch.sign(g))


def centralize() -> GradientTransformation:
    """g <- g minus its mean over the inputs of each output unit, for matrices and kernels; vectors stay as they are.

    Source: Yong et al., "Gradient centralization", arXiv 2004.01461, equation 1.
    """

    def leaf(g: Tensor, p: Tensor) -> Tensor:
        return g - g.mean(dim=tuple(range(1, g.ndim)), keepdim=True) if g.ndim > 1 else g

    return stateless_with_tree_map(leaf)


def keep_norm() -> GradientTransformation:
    """g <- sqrt(R) (p + g) / |p + g| - p for each matrix [R, ...]: it gets the norm of one with orthonormal rows.
    Leaves of fewer dimensions stay as they are.

    The last of a chain, for layers whose output does not depend on the norm of their weights, as before a BatchNorm:
    the norm, which sets the size of a step relative to the weights, then stays the same.
    """

    def leaf(g: Tensor, p: Tensor) -> Tensor:
        if p.ndim < 2:
            return g
        moved, norm = p + g, len(p) ** 0.5
        smallest = norm * torch.finfo(p.dtype).tiny  # keeps the factor finite where p + g is 0
        return moved * (norm / torch.linalg.vector_norm(moved).clamp(min=smallest)) - p

    return stateless_with_tree_map(leaf)


def zero_nans() -> GradientTransformation:
    """g <- 0 where g is NaN. (A step counts as not finite by the gradient before the optimizer: `--nonfinite`.)"""
    return stateless_with_tree_map(lambda g, p: torch.where(g.isnan(), torch.zeros_like(g), g))


def normalize_by_update_norm(norm: float = 1.0, *, eps: float = 1e-6) -> GradientTransformation:
    """g <- norm g / (|g| + eps), where |g| is the norm of the whole tree."""

    def update(updates: Updates, params: Params, norm: Tensor, eps: Tensor) -> Updates:
        factor = norm / (tree.global_norm(updates) + eps)
        return tree.map(lambda g: factor * g, updates)

    return stateless(update, norm=norm, eps=eps)


class SamState(NamedTuple):
    rho: Tensor


def sam(rho: float) -> GradientTransformation:
    """g <- the gradient at p + rho g / |g|, where the loss is about the largest within a distance of rho.

    Its update computes a second gradient of the batch by `grad_fn`, and raises an InputError if there is none.

    Source: Foret et al., "Sharpness-aware minimization for efficiently improving generalization", arXiv 2010.01412,
    equation 2.
    """

    def init(params: Params) -> SamState:
        return SamState(hyperparameter(rho, params))

    def update(
        updates: Updates, state: SamState, params: Params, *, grad_fn: GradFn | None = None
    ) -> tuple[Updates, SamState]:
        if grad_fn is None:
            raise InputError(
                "sam computes a second gradient, but got no `grad_fn`; pass `update(..., grad_fn=...)`, and put sam "
                "outside `partition` and `masked`, whose transforms see only some of the leaves; so it does not go "
                "with --layer-decay or --trunk-lr"
            )
        (distance,) = cast_like(updates, state.rho / (tree.global_norm(updates) + 1e-12))
        return grad_fn(tree.map(lambda p, g: torch.addcmul(p, g, distance), params, updates)), state

    return GradientTransformation(init, update)
