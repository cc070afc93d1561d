"""Every optimizer equals torch.optim or optax, SOAP and Muon their definitions, over 30 real gradients in float64."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from helpers.descent import Descent
from helpers.runs import relative_error
from torch import Tensor

import backbones.tree as tree
from backbones import optim
from backbones.optim import GradientTransformation
from backbones.optim.schedule import cosine
from backbones.types import Params

Oracle = Callable[[Params, list[Params]], Params]
"""(params, gradients) -> the params after one update for each gradient."""


def by_torch(optimizer: type[torch.optim.Optimizer], **options: Any) -> Oracle:
    def oracle(params: Params, grads: list[Params]) -> Params:
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
        theirs = optimizer(leaves.values(), **options)
        for step_grads in grads:
            for name, leaf in leaves.items():
                leaf.grad = step_grads[name].clone()
            theirs.step()
        return {name: leaf.detach() for name, leaf in leaves.items()}

    return oracle


def by_optax(optimizer: optax.GradientTransformation) -> Oracle:
    def oracle(params: Params, grads: list[Params]) -> Params:
        with jax.enable_x64(True):
            theirs = tree.map(Tensor.numpy, params)
            state, update = optimizer.init(theirs), jax.jit(optimizer.update)
            for step_grads in grads:
                updates, state = update(tree.map(Tensor.numpy, step_grads), state, theirs)
                theirs = optax.apply_updates(theirs, updates)
            if isinstance(state, optax.contrib.ScheduleFreeState):
                theirs = optax.contrib.schedule_free_eval_params(state, theirs)
            return tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), theirs)

    return oracle


def is_matrix(params: Params) -> dict[str, bool]:
    return {name: leaf.ndim >= 2 and name.endswith("weight") for name, leaf in params.items()}


def optax_adafactor(learning_rate: float, **options: Any) -> optax.GradientTransformation:
    """`optax.adafactor`, except for the decay of the second moment, which optax computes in float32."""
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate_fn=lambda step, rate: 1 - (step + 1.0) ** -rate, **options),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
        optax.scale_by_learning_rate(learning_rate),
    )


def is_hidden(name: str, leaf: Tensor) -> bool:
    return leaf.ndim >= 2 and name.split(".")[0] in ("stages", "blocks") and name.endswith("weight")


def muon_by_definition(params: Params, grads: list[Params]) -> Params:
    """Jordan et al., leaf by leaf: momentum, five iterations on [out, in h w]; AdamW for the other leaves."""
    hidden = {name for name, leaf in params.items() if is_hidden(name, leaf)}
    rest = {name: leaf for name, leaf in params.items() if name not in hidden}
    decays = {name: leaf for name, leaf in rest.items() if is_matrix(params)[name]}
    assert len(hidden) >= 3 and decays
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


CASES: dict[str, tuple[GradientTransformation, Oracle]] = {
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
        optim.sgd(lr=0.1, weight_decay=0.1, decays=optim.is_matrix),
        by_optax(optax.chain(optax.add_decayed_weights(0.1, is_matrix), optax.sgd(0.1, momentum=0.9))),
    ),
    "adam": (optim.adam(lr=0.01), by_torch(torch.optim.Adam, lr=0.01)),
    "adam-l2": (
        optim.adam(lr=0.01, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1),
        by_torch(torch.optim.Adam, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
    ),
    "adamw": (optim.adamw(lr=0.01, weight_decay=0.1), by_torch(torch.optim.AdamW, lr=0.01, weight_decay=0.1)),
    "adamw-matrices-decay": (
        optim.adamw(lr=0.01, weight_decay=0.1, decays=optim.is_matrix),
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
    "muon": (optim.muon(hidden=is_hidden, bfloat16=False, weight_decay=0.1), muon_by_definition),
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


def run(optimizer: GradientTransformation, params: Params, grads: list[Params]) -> Params:
    """The params to evaluate after one update for each gradient, which is that of all params (a linear loss)."""
    opt_state, update = optimizer.init(params), optim.with_grad_fn(optimizer.update)
    for step_grads in grads:
        updates, opt_state = update(step_grads, opt_state, params, grad_fn=lambda _, grads=step_grads: grads)
        params = optim.apply_updates(params, updates)
    return optim.evaluation_params(opt_state, params)


def test_every_alias_has_a_case() -> None:
    assert set(optim.OPTIMIZERS) - {"soap"} <= set(CASES)


BY_SHAPE = (
    *("adamw", "sgd-matrices-decay", "adamw-matrices-decay", "lamb", "lars"),
    *("adafactor", "adafactor-whole", "muon"),
)
"""Cases in which the name and the shape of a leaf matter, and one in which they do not."""


@pytest.mark.parametrize(
    ("descent", "name"),
    [("small", name) for name in CASES] + [pytest.param("vit", name, marks=pytest.mark.slow) for name in BY_SHAPE],
    indirect=["descent"],
)
def test_optimizer_equals_its_oracle(name: str, descent: Descent) -> None:
    optimizer, oracle = CASES[name]
    got, wanted = run(optimizer, descent.params, descent.grads), oracle(descent.params, descent.grads)
    for key, leaf in got.items():
        assert relative_error(leaf - descent.params[key], wanted[key] - descent.params[key]) < 1e-10, key


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_float32_is_close_to_float64(name: str, descent: Descent) -> None:
    """With the defaults, which for Muon is bfloat16."""
    optimizer = optim.OPTIMIZERS[name]()
    to_float = functools.partial(tree.map, Tensor.float)
    params, grads = to_float(descent.params), [to_float(step_grads) for step_grads in descent.grads]
    got, wanted = run(optimizer, params, grads[:10]), run(optimizer, descent.params, descent.grads[:10])
    tolerance = {"sgd": 1e-5, "adamw": 1e-3, "muon": 0.05}[name]
    total = {key: leaf.double() - descent.params[key] for key, leaf in got.items()}
    moved = tree.map(torch.sub, wanted, descent.params)
    assert tree.global_norm(tree.map(torch.sub, total, moved)) < tolerance * tree.global_norm(moved)
    assert all(leaf.dtype == torch.float32 for leaf in got.values())


def test_muon_makes_singular_values_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    wide, kernel = torch.randn(16, 64, generator=generator), torch.randn(64, 8, 3, 3, generator=generator)
    updates, _ = optim.orthogonalize(None).update({"wide": wide, "kernel": kernel}, {}, {})
    for matrix in (updates["wide"], updates["kernel"].reshape(64, 72)):
        values = torch.linalg.svdvals(matrix)
        assert values.min() > 0.6 and values.max() < 1.3
    tall, _ = optim.orthogonalize(None).update({"tall": wide.T}, {}, {})
    assert torch.linalg.svdvals(tall["tall"]).mean() == pytest.approx(2.0, rel=0.2)  # sqrt(64 / 16)


@pytest.mark.parametrize("descent", ["small", pytest.param("vit", marks=pytest.mark.slow)], indirect=True)
def test_soap_equals_its_definition(descent: Descent) -> None:
    """Vyas et al., algorithm 3, one update at a time: rounding errors in the basis of a null space would accumulate.

    With an eps far above rounding errors, because the components in the null space are divided by it.
    """
    optimizer = optim.soap(refresh_every=1, eps=1e-3, max_size=128)
    params, (state, *rest) = descent.params, optimizer.init(descent.params)
    assert "64" in state.bases
    for t, grads in enumerate(descent.grads, start=1):
        updates, (new_state, *rest) = optimizer.update(grads, (state, *rest), params)
        counts = dict.fromkeys(state.bases, 0)
        for name, p in params.items():
            is_vector, bases = p.ndim == 1, []
            p, g, m, new_m, update = (
                (leaf if is_vector else leaf.movedim(1, -1)).reshape(len(p), -1)
                for leaf in (p, grads[name], state.mu[name], new_state.mu[name], updates[name])
            )
            for size, product in zip(p.shape, (g @ g.T, g.T @ g), strict=True):
                if is_vector or str(size) not in counts:  # of size 1, or too large
                    bases.append(torch.eye(size).double())
                    continue
                i, counts[str(size)] = counts[str(size)], counts[str(size)] + 1
                bases.append(state.bases[str(size)][i])  # of the gradients before this one
                covariance = 0.95 * state.covariances[str(size)][i] + 0.05 * product
                shifted = covariance + 1e-5 * covariance.trace() * torch.eye(size)
                wanted = torch.linalg.qr(shifted @ bases[-1]).Q
                assert relative_error(new_state.covariances[str(size)][i], covariance) < 1e-7
                assert relative_error(new_state.bases[str(size)][i], wanted) < 1e-7
            left, right = bases
            m = 0.95 * m + 0.05 * g
            v = 0.95 * state.nu[name].reshape(g.shape) + 0.05 * (left.T @ g @ right) ** 2
            m_hat, v_hat = left.T @ m @ right / (1 - 0.95**t), v / (1 - 0.95**t)
            wanted = -3e-3 * (left @ (m_hat / (v_hat.sqrt() + 1e-3)) @ right.T + 0.01 * p)
            for got, each in ((new_m, m), (new_state.nu[name].reshape(g.shape), v), (update, wanted)):
                assert relative_error(got, each) < 1e-7, name
        params, state = optim.apply_updates(params, updates), new_state


def test_soap_refreshes_all_bases_in_refresh_every_updates() -> None:
    params = {f"{i}.weight": torch.randn(4, 4, generator=torch.Generator().manual_seed(i)) for i in range(5)}
    transform = optim.scale_by_soap(refresh_every=3)  # 10 bases of size 4: 4 in each update, all in 3
    state = transform.init(params)
    changed = torch.zeros(10, dtype=torch.bool)
    for _ in range(3):
        before = state.bases["4"]
        _, state = transform.update(params, state, params)
        refreshed = (state.bases["4"] != before).flatten(1).any(dim=1)
        assert refreshed.sum() <= 4
        changed |= refreshed
    assert changed.all()
    identity = torch.eye(4).expand(10, 4, 4)
    torch.testing.assert_close(state.bases["4"] @ state.bases["4"].mT, identity, atol=1e-5, rtol=0)


def test_soap_of_bfloat16_parameters() -> None:
    params = {"weight": torch.randn(4, 4, generator=torch.Generator().manual_seed(0))}
    transform, bases = optim.scale_by_soap(refresh_every=1), []
    for dtype in (torch.bfloat16, torch.float32):
        grads = {"weight": params["weight"].bfloat16().to(dtype)}
        updates, state = transform.update(grads, transform.init(grads), grads)
        assert updates["weight"].dtype == state.bases["4"].dtype == dtype
        bases.append(state.bases["4"].float())
    torch.testing.assert_close(*bases, atol=0.02, rtol=0)


def test_adafactor_has_two_vectors_for_a_matrix() -> None:
    params = {"weight": torch.randn(256, 128)}
    state = optim.adafactor().init(params)
    assert tree.size(state) < 256 + 128 + 16 and math.prod(params["weight"].shape) == 32768


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_a_learning_rate_set_in_the_state_acts(name: str, descent: Descent) -> None:
    optimizer = optim.OPTIMIZERS[name](lr=0.1)
    update, state = optim.with_grad_fn(optimizer.update), optimizer.init(descent.params)
    assert 0.1 in [
        value.item() for path, value in optim.hyperparams(state).items() if path.endswith("base_learning_rate")
    ]
    steps = []
    for learning_rate in (0.1, 0.2):
        changed = optim.set_hyperparams(state, base_learning_rate=torch.tensor(learning_rate, dtype=torch.float64))
        updates, _ = update(descent.grads[0], changed, descent.params, grad_fn=lambda params: descent.grads[0])
        steps.append(updates)
    for key, leaf in steps[0].items():
        torch.testing.assert_close(steps[1][key], 2 * leaf)


@pytest.mark.parametrize(("option", "field"), [("momentum", "decay"), ("weight_decay", "weight_decay")])
def test_a_hyperparameter_that_was_0_acts_when_it_is_set(option: str, field: str, descent: Descent) -> None:
    without, wanted = (optim.sgd(lr=0.1, **{option: value}) for value in (0.0, 0.5))
    state = optim.set_hyperparams(without.init(descent.params), **{field: torch.tensor(0.5, dtype=torch.float64)})
    wanted_state = wanted.init(descent.params)
    assert tree.sha256(state) == tree.sha256(wanted_state)
    for grads in descent.grads[:2]:
        updates, state = without.update(grads, state, descent.params)
        wanted_updates, wanted_state = wanted.update(grads, wanted_state, descent.params)
    assert tree.sha256(updates) == tree.sha256(wanted_updates)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_update_is_pure_and_keeps_the_structure_of_the_state(name: str, descent: Descent) -> None:
    optimizer = optim.OPTIMIZERS[name]()
    arguments = descent.grads[0], optimizer.init(descent.params), descent.params
    before = tree.sha256(arguments)
    updates, new_state = optim.with_grad_fn(optimizer.update)(*arguments, grad_fn=lambda params: descent.grads[1])
    assert tree.sha256(arguments) == before
    assert all(isinstance(leaf, Tensor) for leaf in tree.leaves(new_state))
    described = [
        {key: (leaf.dtype, leaf.shape, leaf.stride()) for key, leaf in tree.named_leaves(state).items()}
        for state in (arguments[1], new_state)
    ]
    assert described[0] == described[1]
    for key, leaf in updates.items():
        assert (leaf.dtype, leaf.shape) == (torch.float64, descent.params[key].shape)


def test_the_first_update_of_soap_is_that_of_adam(descent: Descent) -> None:
    params, grads = descent.params, descent.grads[0]
    soap, adam = optim.scale_by_soap(b1=0.9, b2=0.95), optim.scale_by_adam(b1=0.9, b2=0.95)
    updates, wanted = (each.update(grads, each.init(params), params)[0] for each in (soap, adam))
    for name, leaf in updates.items():
        torch.testing.assert_close(leaf, wanted[name])


OTHER_VALUES = {
    "eps": 1e-2,
    "min_rms": 1.0,
    "clip": 0.01,
    "min_dim_size_to_factor": 4,
    "max_size": 4,
    "refresh_every": 1,
}
"""Of options of which half the default would change nothing here."""


def after_eight(optimizer: GradientTransformation, descent: Descent) -> Params:
    params, state = descent.params, optimizer.init(descent.params)
    for grads in descent.grads[:8]:
        updates, state = optim.with_grad_fn(optimizer.update)(
            grads, state, params, grad_fn=lambda params: tree.map(lambda p: 0.1 * p.cos(), params)
        )
        params = optim.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_option_changes_what_an_optimizer_does(name: str, descent: Descent) -> None:
    """And so do the weights that decay, and the schedule."""
    options = {
        key: each.default
        for key, each in inspect.signature(optim.OPTIMIZERS[name]).parameters.items()
        if each.kind is each.KEYWORD_ONLY
    }
    small = {"momentum": 0.9, "max_size": 128}  # the second for time
    options |= {"lr": 0.01, "weight_decay": 0.1} | {key: small[key] for key in small.keys() & options.keys()}

    def end(**changes: object) -> Params:
        return after_eight(optim.OPTIMIZERS[name](**{**options, **changes}), descent)

    def distance(one: Params, other: Params) -> float:
        return (tree.global_norm(tree.map(torch.sub, one, other)) / tree.global_norm(one)).item()

    as_it_is = end()
    for option, value in options.items():
        other = not value if isinstance(value, bool) else OTHER_VALUES.get(option, value / 2)
        assert distance(end(**{option: other}), as_it_is) > 1e-9, option
    assert distance(end(decays=lambda name, leaf: False), end(weight_decay=0.0)) < 1e-12
    rates = {option: options[option] / 2 for option in ("lr", "adamw_lr") if option in options}
    halved = end(schedule=lambda step: torch.full((), 0.5, dtype=torch.float64))
    assert distance(halved, end(**rates)) < 1e-12
