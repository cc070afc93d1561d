"""torch.optim is the oracle of the aliases, optax of the transforms."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import backbones.tree as tree
from backbones import optim
from backbones.optim.schedule import cosine
from backbones.types import Params

ALIASES: dict[str, tuple[optim.GradientTransformation, Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (
        optim.sgd(lr=0.1, momentum=0.0, weight_decay=0.0),
        lambda p: torch.optim.SGD(p, lr=0.1),
    ),
    "sgd-momentum-decay": (
        optim.sgd(lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    "sgd-nesterov": (
        optim.sgd(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    "adam": (optim.adam(lr=0.01), lambda p: torch.optim.Adam(p, lr=0.01)),
    "adam-l2": (
        optim.adam(lr=0.01, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
    ),
    "adamw": (
        optim.adamw(lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    ),
}


def make_params(dtype: torch.dtype) -> Params:
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv.weight": (8, 3, 3, 3), "norm.weight": (8,), "head.weight": (10, 8), "scalar": ()}
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def gradient(params: Params, step: int) -> Params:
    """Of a quadratic that is different at each step."""
    return {name: (1 + i) * leaf + np.sin(step + i) for i, (name, leaf) in enumerate(params.items())}


def run(optimizer: optim.GradientTransformation, params: Params, num_steps: int) -> Params:
    opt_state = optimizer.init(params)
    for step in range(num_steps):
        updates, opt_state = optimizer.update(gradient(params, step), opt_state, params)
        params = optim.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", ALIASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_alias_equals_torch_optim(name: str, dtype: torch.dtype, tolerance: float) -> None:
    ours, make_theirs = ALIASES[name]
    params = make_params(dtype)
    theirs = {key: leaf.clone().requires_grad_() for key, leaf in params.items()}
    optimizer = make_theirs(theirs.values())
    for step in range(20):
        with torch.no_grad():
            for leaf, grad in zip(theirs.values(), gradient(theirs, step).values(), strict=True):
                leaf.grad = grad
        optimizer.step()
    result = run(ours, params, 20)
    for key, leaf in result.items():
        torch.testing.assert_close(leaf, theirs[key].detach(), rtol=tolerance, atol=tolerance)


def test_schedule_equals_torch_optim_with_a_scheduler() -> None:
    params = make_params(torch.float64)
    theirs = {key: leaf.clone().requires_grad_() for key, leaf in params.items()}
    optimizer = torch.optim.SGD(theirs.values(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.001)
    for step in range(20):
        with torch.no_grad():
            for leaf, grad in zip(theirs.values(), gradient(theirs, step).values(), strict=True):
                leaf.grad = grad
        optimizer.step()
        scheduler.step()
    result = run(optim.sgd(cosine(20, floor=0.01), lr=0.1, momentum=0.9, weight_decay=0.0), params, 20)
    for key, leaf in result.items():
        torch.testing.assert_close(leaf, theirs[key].detach(), rtol=1e-10, atol=1e-10)


TRANSFORMS = {
    "scale": (optim.scale(-0.5), optax.scale(-0.5)),
    "trace": (optim.trace(0.9), optax.trace(0.9)),
    "trace-nesterov": (optim.trace(0.9, nesterov=True), optax.trace(0.9, nesterov=True)),
    "scale_by_adam": (optim.scale_by_adam(0.9, 0.99, 1e-6), optax.scale_by_adam(0.9, 0.99, 1e-6)),
    "add_decayed_weights": (optim.add_decayed_weights(0.1), optax.add_decayed_weights(0.1)),
    "clip-long": (optim.clip_by_global_norm(0.5), optax.clip_by_global_norm(0.5)),
    "clip-short": (optim.clip_by_global_norm(1e6), optax.clip_by_global_norm(1e6)),
    "chain": (
        optim.chain(optim.clip_by_global_norm(1.0), optim.trace(0.5), optim.scale(-0.1)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.5), optax.scale(-0.1)),
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform_equals_optax(name: str) -> None:
    ours, theirs = TRANSFORMS[name]
    params = make_params(torch.float32)
    their_params = {key: jnp.asarray(leaf.numpy()) for key, leaf in params.items()}
    state, their_state = ours.init(params), theirs.init(their_params)
    for step in range(5):
        grads = gradient(params, step)
        their_grads = {key: jnp.asarray(leaf.numpy()) for key, leaf in grads.items()}
        before = tree.sha256((grads, state, params))
        updates, new_state = ours.update(grads, state, params)
        assert tree.sha256((grads, state, params)) == before  # pure
        state = new_state
        their_updates, their_state = theirs.update(their_grads, their_state, their_params)
        for key, leaf in updates.items():
            assert leaf.dtype == torch.float32
            np.testing.assert_allclose(leaf.numpy(), their_updates[key], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("make", [optim.sgd, optim.adam, optim.adamw])
def test_hyperparameters_are_leaves(make: Callable[..., optim.GradientTransformation]) -> None:
    """A rate that is changed in the state is obeyed, without making the transform again."""
    params = make_params(torch.float64)
    optimizer = make(lr=0.1)
    opt_state = optimizer.init(params)
    rate = tree.find(opt_state, optim.ScaleByLearningRateState)[0].peak
    assert rate.shape == () and rate.item() == 0.1
    grads = gradient(params, 0)
    updates, _ = optimizer.update(grads, opt_state, params)
    rate.fill_(0.2)
    doubled, _ = optimizer.update(grads, opt_state, params)
    for key, leaf in updates.items():
        torch.testing.assert_close(doubled[key], 2 * leaf)
