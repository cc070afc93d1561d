"""optax is the oracle of the transforms and of what is made of them, in float64, on real gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from conftest import relative_error
from descent import Descent
from torch import Tensor

import backbones.tree as tree
from backbones import optim
from backbones.errors import InputError
from backbones.optim import GradientTransformation
from backbones.optim.label import is_hidden_matrix, is_matrix
from backbones.optim.schedule import cosine, restarts
from backbones.types import Params

NUM_STEPS = 12


def flip(leaf: Tensor) -> Tensor:
    """[out, ...] <-> [..., out]: a matrix is [in, out] for JAX, and whoever looks at its units has to know."""
    return leaf.permute(*reversed(range(leaf.ndim)))


def matrices(params: Params) -> dict[str, bool]:
    return {name: leaf.ndim > 1 and name.endswith("weight") for name, leaf in params.items()}


def labels(params: Params) -> dict[str, str]:
    return {name: "big" if leaf.size > 1000 else "small" for name, leaf in params.items()}


with jax.enable_x64(True):
    CASES: dict[str, tuple[GradientTransformation, optax.GradientTransformation]] = {
        "scale": (optim.scale(-0.5), optax.scale(-0.5)),
        "scale_by_schedule": (
            optim.scale_by_schedule(cosine(10)),
            optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, 10)),
        ),
        "scale_by_learning_rate": (
            optim.scale_by_learning_rate(0.3, cosine(10)),
            optax.scale_by_learning_rate(optax.cosine_decay_schedule(0.3, 10)),
        ),
        "trace": (optim.trace(0.9), optax.trace(0.9)),
        "trace-nesterov": (optim.trace(0.9, nesterov=True), optax.trace(0.9, nesterov=True)),
        "ema": (optim.ema(0.9), optax.ema(0.9)),
        "ema-biased": (optim.ema(0.9, debias=False), optax.ema(0.9, debias=False)),
        "scale_by_adam": (optim.scale_by_adam(0.9, 0.99, 1e-6), optax.scale_by_adam(0.9, 0.99, 1e-6)),
        "scale_by_adam-nesterov": (optim.scale_by_adam(nesterov=True), optax.scale_by_adam(nesterov=True)),
        "scale_by_lion": (optim.scale_by_lion(0.8, 0.9), optax.scale_by_lion(0.8, 0.9)),
        "scale_by_rms": (
            optim.scale_by_rms(0.8, 1e-3),
            optax.scale_by_rms(0.8, 1e-3, eps_in_sqrt=False),
        ),
        "scale_by_rms-unbiased": (
            optim.scale_by_rms(0.8, 1e-3, debias=True),
            optax.scale_by_rms(0.8, 1e-3, eps_in_sqrt=False, bias_correction=True),
        ),
        "scale_by_belief": (optim.scale_by_belief(0.8, 0.9, 1e-9), optax.scale_by_belief(0.8, 0.9, 1e-9, 1e-9)),
        "scale_by_radam": (optim.scale_by_radam(), optax.scale_by_radam()),
        "scale_by_trust_ratio": (
            optim.scale_by_trust_ratio(0.1, eps=1e-3),
            optax.scale_by_trust_ratio(trust_coefficient=0.1, eps=1e-3),
        ),
        "scale_by_param_block_rms": (optim.scale_by_param_block_rms(0.5), optax.scale_by_param_block_rms(0.5)),
        "scale_by_sign": (optim.scale_by_sign(), optax.scale_by_sign()),
        "add_decayed_weights": (optim.add_decayed_weights(0.1), optax.add_decayed_weights(0.1)),
        "add_decayed_weights-none": (optim.add_decayed_weights(0.0), optax.identity()),
        "add_decayed_weights-masked": (
            optim.add_decayed_weights(0.1, is_matrix),
            optax.add_decayed_weights(0.1, matrices),
        ),
        "centralize": (optim.centralize(), optax.centralize()),
        "zero_nans": (
            optim.chain(optim.stateless(lambda updates, params: tree.map(torch.log, updates)), optim.zero_nans()),
            optax.chain(optax.stateless(lambda u, p: jax.tree.map(jnp.log, u)), optax.zero_nans()),
        ),
        "clip_by_value": (optim.clip_by_value(1e-3), optax.clip(1e-3)),
        "clip_by_block_rms": (optim.clip_by_block_rms(1e-2), optax.clip_by_block_rms(1e-2)),
        "clip_by_global_norm-long": (optim.clip_by_global_norm(0.5), optax.clip_by_global_norm(0.5)),
        "clip_by_global_norm-short": (optim.clip_by_global_norm(1e6), optax.clip_by_global_norm(1e6)),
        "adaptive_clip": (optim.adaptive_clip(0.01), optax.adaptive_grad_clip(0.01)),
        "normalize_by_update_norm": (optim.normalize_by_update_norm(2.0), optax.normalize_by_update_norm(2.0)),
        "chain": (
            optim.chain(optim.clip_by_global_norm(1.0), optim.trace(0.5), optim.scale(-0.1)),
            optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.5), optax.scale(-0.1)),
        ),
        "named_chain": (
            optim.named_chain(momentum=optim.trace(0.5), adam=optim.scale_by_adam()),
            optax.named_chain(("momentum", optax.trace(0.5)), ("adam", optax.scale_by_adam())),
        ),
        "masked": (optim.masked(optim.trace(0.5), is_matrix), optax.masked(optax.trace(0.5), matrices)),
        "partition": (
            optim.partition(
                {"big": optim.scale_by_adam(), "small": optim.clip_by_global_norm(0.1)},
                lambda name, leaf: "big" if leaf.numel() > 1000 else "small",
            ),
            optax.partition({"big": optax.scale_by_adam(), "small": optax.clip_by_global_norm(0.1)}, labels),
        ),
        "multi_steps": (
            optim.multi_steps(optim.scale_by_adam(), 3),
            optax.MultiSteps(optax.scale_by_adam(), 3, accumulator_dtype="float64").gradient_transformation(),
        ),
        "apply_if_finite": (
            optim.apply_if_finite(optim.scale_by_adam(), 3),
            optax.apply_if_finite(optax.scale_by_adam(), 3),
        ),
        "inject_hyperparams": (
            optim.inject_hyperparams(optim.scale_by_adam(), eps=lambda step: 0.5 ** step.to(torch.float64)),
            optax.inject_hyperparams(optax.scale_by_adam)(eps=lambda step: 0.5 ** jnp.float64(step)),
        ),
    }


@pytest.mark.parametrize("name", CASES)
def test_transform_equals_optax(name: str, descent: Descent) -> None:
    ours, theirs = CASES[name]
    params = {name: leaf for name, leaf in descent.params.items() if leaf.ndim != 3}  # optax's units of them are others
    to_theirs = flip if name == "adaptive_clip" else lambda leaf: leaf
    with jax.enable_x64(True):
        their_params = tree.map(lambda leaf: to_theirs(leaf).numpy(), params)
        state, their_state = ours.init(params), theirs.init(their_params)
        their_update = jax.jit(theirs.update)
        for grads in descent.grads[:NUM_STEPS]:
            grads = {name: grads[name] for name in params}
            before = tree.sha256((grads, state, params))
            updates, new_state = ours.update(grads, state, params)
            assert tree.sha256((grads, state, params)) == before  # pure
            state = new_state
            their_updates, their_state = their_update(
                tree.map(lambda leaf: to_theirs(leaf).numpy(), grads), their_state, their_params
            )
            for key, leaf in updates.items():
                assert leaf.dtype == torch.float64
                wanted = to_theirs(torch.tensor(np.asarray(their_updates[key])))
                assert torch.equal(leaf, wanted) or relative_error(leaf, wanted) < 1e-10, key


def run(transform: GradientTransformation, descent: Descent, num_steps: int = NUM_STEPS) -> tuple[Params, object]:
    params, state = descent.params, transform.init(descent.params)
    for grads in descent.grads[:num_steps]:
        updates, state = transform.update(grads, state, params)
        params = optim.apply_updates(params, updates)
    return params, state


def test_lookahead_equals_optax(descent: Descent) -> None:
    params, _ = run(optim.lookahead(optim.sgd(lr=0.1, weight_decay=0.0), every=5, rate=0.3), descent)
    with jax.enable_x64(True):
        theirs = optax.lookahead(optax.sgd(0.1, momentum=0.9), sync_period=5, slow_step_size=0.3)
        their_params = optax.LookaheadParams.init_synced(tree.map(Tensor.numpy, descent.params))
        state = theirs.init(their_params)
        for grads in descent.grads[:NUM_STEPS]:
            updates, state = theirs.update(tree.map(Tensor.numpy, grads), state, their_params)
            their_params = optax.apply_updates(their_params, updates)
    for key, leaf in params.items():
        wanted = torch.tensor(np.asarray(their_params.fast[key])) - descent.params[key]
        assert relative_error(leaf - descent.params[key], wanted) < 1e-10


def test_averages_are_those_of_all_parameters_seen(descent: Descent) -> None:
    base = optim.sgd(lr=0.1)
    path = [run(base, descent, num_steps)[0] for num_steps in range(1, NUM_STEPS + 1)]

    def mean(weights: list[float]) -> Params:
        return tree.map(lambda *leaves: sum(w * p for w, p in zip(weights, leaves, strict=True)) / sum(weights), *path)

    averages = {
        optim.ema_params(0.8): mean([0.8 ** (NUM_STEPS - t) for t in range(1, NUM_STEPS + 1)]),
        optim.swa(4, every=3): mean([float(t in (4, 7, 10)) for t in range(1, NUM_STEPS + 1)]),
        optim.swa(100): path[-1],
    }
    for average, wanted in averages.items():
        params, state = run(optim.chain(base, average), descent)
        assert tree.sha256(params) == tree.sha256(path[-1])  # it only watches
        got = optim.evaluation_params(state, params)
        assert all(relative_error(leaf, wanted[key]) < 1e-12 for key, leaf in got.items())
    assert optim.evaluation_params(run(base, descent)[1], params) is params


def test_apply_if_finite_leaves_out_what_is_not_finite(descent: Descent) -> None:
    optimizer = optim.apply_if_finite(optim.adam(), 2)
    params, state = run(optimizer, descent, 3)
    poison = tree.map(torch.clone, descent.grads[0])
    poison["head.weight"][0, 0] = torch.inf
    for skipped in (1, 2):
        updates, new_state = optimizer.update(poison, state, params)
        assert tree.global_norm(updates) == 0
        assert tree.sha256(new_state.inner) == tree.sha256(state.inner)
        state = new_state
        assert state.skipped == state.total_skipped == skipped
    _, recovered = optimizer.update(descent.grads[0], state, params)
    assert recovered.skipped == 0 and recovered.total_skipped == 2
    updates, state = optimizer.update(poison, state, params)
    assert not torch.isfinite(updates["head.weight"]).all() and state.skipped == 3


def test_partition_shows_each_transform_its_own_leaves_alone(descent: Descent) -> None:
    transforms = {"hidden": optim.trace(0.5), "rest": optim.scale_by_adam(), "none": optim.trace(0.5)}
    transform = optim.partition(transforms, lambda name, leaf: "hidden" if is_hidden_matrix(name, leaf) else "rest")
    updates, state = transform.update(descent.grads[0], transform.init(descent.params), descent.params)
    assert list(updates) == list(descent.params) and state.keys() == {"hidden", "rest"}
    hidden = {name for name in descent.params if name.startswith(("blocks", "stages")) and name.endswith("weight")}
    hidden = {name for name in hidden if descent.params[name].ndim > 1}
    assert state["hidden"].trace.keys() == hidden != set()
    assert state["rest"].mu.keys() == descent.params.keys() - hidden


def test_noise_has_its_variance_and_is_a_function_of_seed_and_step() -> None:
    zeros = {"a": torch.zeros(200, 100), "b": torch.zeros(200, 100)}
    transform = optim.add_noise(eta=0.5, gamma=0.55, seed=3)
    state, noises = transform.init(zeros), []
    for step in range(1, 4):
        noise, state = transform.update(zeros, state, zeros)
        for leaf in noise.values():
            assert leaf.mean().abs() < 0.02
            assert leaf.var().item() == pytest.approx(0.5 / step**0.55, rel=0.05)
            assert (leaf.abs() < leaf.std()).float().mean().item() == pytest.approx(0.6827, abs=0.01)  # normal
        noises += [leaf / leaf.std() for leaf in noise.values()]
    correlations = torch.corrcoef(torch.stack([noise.flatten() for noise in noises]))
    assert (correlations - torch.eye(6)).abs().max() < 0.03
    again, _ = transform.update(zeros, transform.init(zeros), zeros)
    torch.testing.assert_close(again["a"] / again["a"].std(), noises[0], rtol=0, atol=0)
    other = optim.add_noise(eta=0.5, gamma=0.55, seed=4)
    assert not torch.equal(other.update(zeros, other.init(zeros), zeros)[0]["a"], again["a"])


def test_hyperparams_are_read_and_set_by_name(descent: Descent) -> None:
    state = optim.adamw(lr=0.1).init(descent.params)
    assert {path: value.item() for path, value in optim.hyperparams(state).items()} == {
        "0/b1": 0.9, "0/b2": 0.999, "0/eps": 1e-8, "1/weight_decay": 0.01, "2/peak": 0.1, "2/learning_rate": 0.0,
    }  # fmt: skip
    changed = optim.set_hyperparams(state, b2=torch.tensor(0.5, dtype=torch.float64))
    assert changed[0].b2 == 0.5 and state[0].b2 == 0.999
    with pytest.raises(ValueError, match="no rate in the state is called 'b3'; there are: b1, b2, eps"):
        optim.set_hyperparams(state, b3=torch.tensor(0.5))
    with pytest.raises(ValueError, match="no rate in the state is called 'b3'"):
        optim.inject_hyperparams(optim.adam(), b3=cosine(10)).init(descent.params)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.schedule_free_adamw(b1=0.0), r"b1 is 0.0; it must be above 0"),
        (lambda: optim.soap(refresh_every=0), r"refresh_every is 0; it must be 1 or more"),
        (lambda: restarts(10, cycles=0), r"0 cycles with a growth of 2.0; there must be 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
