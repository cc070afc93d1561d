"""Every alias against torch.optim or optax, SOAP and Muon against their definitions: 50 real gradients, float64."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from conftest import relative_error
from descent import Descent
from torch import Tensor

import backbones.tree as tree
from backbones import optim
from backbones.optim import GradientTransformation
from backbones.optim.schedule import cosine
from backbones.types import Params

Descend = Callable[[Params, list[Params]], Params]
"""(params, gradients) -> the params after as many updates."""


def by_torch(optimizer: type[torch.optim.Optimizer], **options: Any) -> Descend:
    def follow(params: Params, grads: list[Params]) -> Params:
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
        theirs = optimizer(leaves.values(), **options)
        for step_grads in grads:
            for name, leaf in leaves.items():
                leaf.grad = step_grads[name].clone()
            theirs.step()
        return {name: leaf.detach() for name, leaf in leaves.items()}

    return follow


def by_optax(optimizer: optax.GradientTransformation) -> Descend:
    def follow(params: Params, grads: list[Params]) -> Params:
        with jax.enable_x64(True):
            theirs = tree.map(Tensor.numpy, params)
            state, update = optimizer.init(theirs), jax.jit(optimizer.update)
            for step_grads in grads:
                updates, state = update(tree.map(Tensor.numpy, step_grads), state, theirs)
                theirs = optax.apply_updates(theirs, updates)
            if isinstance(state, optax.contrib.ScheduleFreeState):
                theirs = optax.contrib.schedule_free_eval_params(state, theirs)
            return tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), theirs)

    return follow


def is_matrix(params: Params) -> dict[str, bool]:
    return {name: leaf.ndim >= 2 and name.endswith("weight") for name, leaf in params.items()}


def optax_adafactor(learning_rate: float, **options: Any) -> optax.GradientTransformation:
    """`optax.adafactor`, but for the decay of the second moment, which it computes in float32."""
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate_fn=lambda step, rate: 1 - (step + 1.0) ** -rate, **options),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
        optax.scale_by_learning_rate(learning_rate),
    )


def muon_by_definition(params: Params, grads: list[Params]) -> Params:
    """Jordan et al., leaf by leaf: momentum, five iterations on [out, in h w], rate 0.02; AdamW for the rest."""
    hidden = {
        name
        for name, leaf in params.items()
        if leaf.ndim >= 2 and name.split(".")[0] in ("stages", "blocks") and name.endswith("weight")
    }
    assert 3 <= len(hidden) < len(is_matrix(params))
    rest = {name: leaf for name, leaf in params.items() if name not in hidden}
    decays = {name: leaf for name, leaf in rest.items() if is_matrix(params)[name]}
    result = by_torch(torch.optim.AdamW, lr=3e-4, weight_decay=0)(rest, grads)
    result |= by_torch(torch.optim.AdamW, lr=3e-4, weight_decay=0.1)(decays, grads)
    for name in hidden:
        p, m = params[name], torch.zeros_like(params[name])
        for step_grads in grads:
            m = 0.95 * m + step_grads[name]
            x = (step_grads[name] + 0.95 * m).reshape(len(p), -1)
            shape, x = x.shape, x / (x.norm() + 1e-7)
            if shape[0] > shape[1]:
                x = x.T
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            if shape[0] > shape[1]:
                x = x.T
            u = max(1, shape[0] / shape[1]) ** 0.5 * x.reshape(p.shape)
            p = p - 0.02 * (u + 0.1 * p)
        result[name] = p
    return result


CASES: dict[str, tuple[GradientTransformation, Descend]] = {
    "sgd": (optim.sgd(lr=0.1, momentum=0.0, weight_decay=0.0), by_torch(torch.optim.SGD, lr=0.1)),
    "sgd-momentum-decay": (
        optim.sgd(lr=0.1, momentum=0.9, weight_decay=0.01),
        by_torch(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    "sgd-nesterov": (
        optim.sgd(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        by_torch(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    "sgd-matrices-decay": (
        optim.sgd(lr=0.1, weight_decay=0.1, weight_decay_mask="matrices"),
        by_optax(optax.chain(optax.add_decayed_weights(0.1, is_matrix), optax.sgd(0.1, momentum=0.9))),
    ),
    "adam": (optim.adam(lr=0.01), by_torch(torch.optim.Adam, lr=0.01)),
    "adam-l2": (
        optim.adam(lr=0.01, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1),
        by_torch(torch.optim.Adam, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
    ),
    "adamw": (optim.adamw(lr=0.01, weight_decay=0.1), by_torch(torch.optim.AdamW, lr=0.01, weight_decay=0.1)),
    "adamw-matrices-decay": (
        optim.adamw(lr=0.01, weight_decay=0.1, weight_decay_mask="matrices"),
        by_optax(optax.adamw(0.01, weight_decay=0.1, mask=is_matrix)),
    ),
    "nadam": (optim.nadam(lr=0.01, weight_decay=0.1), by_optax(optax.nadamw(0.01, weight_decay=0.1))),
    "radam": (optim.radam(lr=0.01, eps=1e-4), by_optax(optax.radam(0.01, eps=1e-4))),
    "radam-torch": (
        optim.radam(lr=0.01, eps=0.0, weight_decay=0.1),
        by_torch(torch.optim.RAdam, lr=0.01, eps=0.0, weight_decay=0.1, decoupled_weight_decay=True),
    ),
    "adabelief": (optim.adabelief(lr=0.01), by_optax(optax.adabelief(0.01))),
    "rmsprop": (
        optim.rmsprop(lr=0.01, momentum=0.9, weight_decay=0.1),
        by_torch(torch.optim.RMSprop, lr=0.01, alpha=0.9, momentum=0.9, weight_decay=0.1),
    ),
    "lion": (optim.lion(lr=0.01, weight_decay=0.1), by_optax(optax.lion(0.01, weight_decay=0.1))),
    "lamb": (optim.lamb(lr=0.01, weight_decay=0.1), by_optax(optax.lamb(0.01, weight_decay=0.1))),
    "lars": (
        optim.lars(lr=10.0, weight_decay=0.1),
        by_optax(optax.lars(10.0, weight_decay=0.1, weight_decay_mask=is_matrix, trust_ratio_mask=is_matrix)),
    ),
    "adafactor": (
        optim.adafactor(lr=0.01, min_dim_size_to_factor=16),
        by_optax(optax_adafactor(0.01, min_dim_size_to_factor=16)),
    ),
    "adafactor-whole": (
        optim.adafactor(lr=0.01, min_dim_size_to_factor=10**9),
        by_optax(optax_adafactor(0.01, factored=False)),
    ),
    "muon": (optim.muon(bfloat16=False, weight_decay=0.1), muon_by_definition),
    "schedule-free-adamw": (
        optim.schedule_free_adamw(lr=0.01, weight_decay=0.1),
        by_optax(optax.contrib.schedule_free_adamw(0.01, weight_decay=0.1)),
    ),
    "sam-sgd": (optim.sam_sgd(lr=0.1), by_torch(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)),
    "cosine": (
        optim.sgd(cosine(50, floor=0.01), lr=0.1),
        by_optax(
            optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(optax.cosine_decay_schedule(0.1, 50, 0.01), 0.9))
        ),
    ),
}


def follow(optimizer: GradientTransformation, params: Params, grads: list[Params]) -> Params:
    opt_state = optimizer.init(params)
    for step_grads in grads:
        updates, opt_state = optimizer.update(step_grads, opt_state, params)
        params = optim.apply_updates(params, updates)
    return optim.evaluation_params(opt_state, params)


def test_every_alias_has_a_case() -> None:
    assert set(optim.OPTIMIZERS) - {"soap"} <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_alias_agrees_with_its_oracle(name: str, descent: Descent) -> None:
    optimizer, oracle = CASES[name]
    got, wanted = follow(optimizer, descent.params, descent.grads), oracle(descent.params, descent.grads)
    for key, leaf in got.items():
        assert relative_error(leaf - descent.params[key], wanted[key] - descent.params[key]) < 1e-10, key


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_float32_follows_float64(name: str, descent: Descent) -> None:
    """The defaults, so for Muon bfloat16."""
    optimizer = optim.OPTIMIZERS[name]()
    to_float = functools.partial(tree.map, Tensor.float)
    params, grads = to_float(descent.params), [to_float(step_grads) for step_grads in descent.grads]
    got, wanted = follow(optimizer, params, grads[:10]), follow(optimizer, descent.params, descent.grads[:10])
    tolerance = {"sgd": 1e-5, "adamw": 1e-3, "muon": 0.05}[name]
    total = {key: leaf.double() - descent.params[key] for key, leaf in got.items()}
    moved = tree.map(torch.sub, wanted, descent.params)
    assert tree.global_norm(tree.map(torch.sub, total, moved)) < tolerance * tree.global_norm(moved)
    assert all(leaf.dtype == torch.float32 for leaf in got.values())


def test_muon_makes_singular_values_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    wide, kernel = torch.randn(16, 64, generator=generator), torch.randn(64, 8, 3, 3, generator=generator)
    updates, _ = optim.orthogonalize(None).update({"wide": wide, "kernel": kernel}, optim.EmptyState(), {})
    for matrix in (updates["wide"], updates["kernel"].reshape(64, 72)):
        values = torch.linalg.svdvals(matrix)
        assert values.min() > 0.6 and values.max() < 1.3
    tall, _ = optim.orthogonalize(None).update({"tall": wide.T}, optim.EmptyState(), {})
    assert torch.linalg.svdvals(tall["tall"]).mean() == pytest.approx(2.0, rel=0.2)  # sqrt(64 / 16)


def test_soap_follows_its_definition(descent: Descent) -> None:
    """Vyas et al., algorithm 3, update by update: rounding in the basis of a null space is not to pile up.

    An eps well above rounding, because what lies in the null space is divided by it.
    """
    optimizer = optim.soap(refresh_every=1, eps=1e-3)
    params, (state, *rest) = descent.params, optimizer.init(descent.params)
    assert "64" in state.bases
    for t, grads in enumerate(descent.grads, start=1):
        updates, (new_state, *rest) = optimizer.update(grads, (state, *rest), params)
        counts = dict.fromkeys(state.bases, 0)
        for name, p in params.items():
            if p.ndim == 1:
                continue
            p, g, m, update = (
                leaf.movedim(1, -1).reshape(len(p), -1) for leaf in (p, grads[name], state.mu[name], updates[name])
            )
            bases = []
            for size, product in zip(p.shape, (g @ g.T, g.T @ g), strict=True):
                if str(size) not in counts:  # of size 1, or too large
                    bases.append(torch.eye(size).double())
                    continue
                i, counts[str(size)] = counts[str(size)], counts[str(size)] + 1
                covariance = 0.95 * state.covariances[str(size)][i] + 0.05 * product
                shifted = covariance + 1e-5 * covariance.trace() * torch.eye(size)
                bases.append(torch.linalg.qr(shifted @ state.bases[str(size)][i]).Q)
            left, right = bases
            m = left.T @ (0.95 * m + 0.05 * g) @ right / (1 - 0.95**t)
            v = (0.95 * state.nu[name] + 0.05 * (left.T @ g @ right) ** 2) / (1 - 0.95**t)
            wanted = -3e-3 * (left @ (m / (v.sqrt() + 1e-3)) @ right.T + 0.01 * p)
            assert relative_error(update, wanted) < 1e-7, name
        params, state = optim.apply_updates(params, updates), new_state


def test_soap_refreshes_every_basis_in_turn() -> None:
    params = {f"{i}.weight": torch.randn(4, 4, generator=torch.Generator().manual_seed(i)) for i in range(5)}
    transform = optim.scale_by_soap(refresh_every=3)  # 10 bases of size 4: 4 an update, all in 3
    state = transform.init(params)
    changed = torch.zeros(10, dtype=torch.bool)
    for _ in range(3):
        before = state.bases["4"]
        _, state = transform.update(params, state, params)
        turned = (state.bases["4"] != before).flatten(1).any(dim=1)
        assert turned.sum() <= 4
        changed |= turned
    assert changed.all()
    identity = torch.eye(4).expand(10, 4, 4)
    torch.testing.assert_close(state.bases["4"] @ state.bases["4"].mT, identity, atol=1e-5, rtol=0)


def test_adafactor_remembers_two_vectors_of_a_matrix() -> None:
    params = {"weight": torch.randn(256, 128)}
    state = optim.adafactor().init(params)
    assert tree.size(state) < 256 + 128 + 16 and math.prod(params["weight"].shape) == 32768


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_hyperparameters_are_leaves(name: str, descent: Descent) -> None:
    """A rate that is changed in the state is obeyed, without making the transform again."""
    optimizer = optim.OPTIMIZERS[name](lr=0.1)
    opt_state = optimizer.init(descent.params)
    rates = {rate: value.item() for rate, value in optim.hyperparams(opt_state).items() if rate.endswith("peak")}
    assert 0.1 in rates.values()
    doubled = optim.set_hyperparams(opt_state, peak=torch.tensor(0.2, dtype=torch.float64))
    halved = optim.set_hyperparams(opt_state, peak=torch.tensor(0.1, dtype=torch.float64))
    updates, _ = optimizer.update(descent.grads[0], halved, descent.params)
    updates_doubled, _ = optimizer.update(descent.grads[0], doubled, descent.params)
    for key, leaf in updates.items():
        torch.testing.assert_close(updates_doubled[key], 2 * leaf)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_update_is_pure_and_keeps_the_state_a_tree_of_tensors(name: str, descent: Descent) -> None:
    optimizer = optim.OPTIMIZERS[name]()
    state = optimizer.init(descent.params)
    before = tree.sha256((descent.grads[0], state, descent.params))
    updates, new_state = optimizer.update(descent.grads[0], state, descent.params)
    assert tree.sha256((descent.grads[0], state, descent.params)) == before
    assert all(isinstance(leaf, Tensor) for leaf in tree.leaves(new_state))
    described = [
        {key: (leaf.dtype, leaf.shape, leaf.stride()) for key, leaf in tree.named_leaves(each).items()}
        for each in (state, new_state)
    ]
    assert described[0] == described[1]
    for key, leaf in updates.items():
        assert (leaf.dtype, leaf.shape) == (torch.float64, descent.params[key].shape)
    assert optimizer.init(descent.params) is not state
