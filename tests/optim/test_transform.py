"""Transforms and combinators: optax is the oracle, in float64, on real gradients."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from helpers.descent import Descent
from helpers.runs import relative_error
from torch import Tensor

import backbones.tree as tree
from backbones import optim
from backbones.errors import InputError
from backbones.optim import GradientTransformation
from backbones.optim.schedule import cosine
from backbones.types import Params, Role, Updates

NUM_STEPS = 12


def flip(leaf: Tensor) -> Tensor:
    """[out, ...] <-> [..., out]: in JAX a matrix is [in, out], which matters to transforms of its output units."""
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
        "trace-none": (optim.trace(0.0), optax.trace(0.0)),
        "trace-nesterov": (optim.trace(0.9, nesterov=True), optax.trace(0.9, nesterov=True)),
        "ema": (optim.ema(0.9), optax.ema(0.9)),
        "ema-biased": (optim.ema(0.9, debias=False), optax.ema(0.9, debias=False)),
        "scale_by_adam": (optim.scale_by_adam(0.9, 0.99, 1e-6), optax.scale_by_adam(0.9, 0.99, 1e-6)),
        "scale_by_adam-nesterov": (optim.scale_by_adam(nesterov=True), optax.scale_by_adam(nesterov=True)),
        "scale_by_lion": (optim.scale_by_lion(0.8, 0.9), optax.scale_by_lion(0.8, 0.9)),
        "scale_by_rms": (optim.scale_by_rms(0.8, 1e-3), optax.scale_by_rms(0.8, 1e-3, eps_in_sqrt=False)),
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
            optim.add_decayed_weights(0.1, optim.is_matrix),
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
        "masked": (optim.masked(optim.trace(0.5), optim.is_matrix), optax.masked(optax.trace(0.5), matrices)),
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
    # optax takes other dimensions of leaves of 3 dimensions for their output units.
    params = {name: leaf for name, leaf in descent.params.items() if leaf.ndim != 3}
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
    params, _ = run(optim.lookahead(optim.sgd(lr=0.1, weight_decay=0.0), sync_period=5, slow_step_size=0.3), descent)
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


def test_averages_equal_their_definitions(descent: Descent) -> None:
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
        assert tree.sha256(params) == tree.sha256(path[-1])  # updates stay as they are
        got = optim.evaluation_params(state, params)
        assert all(relative_error(leaf, wanted[key]) < 1e-12 for key, leaf in got.items())
    assert optim.evaluation_params(run(base, descent)[1], params) is params


def test_apply_if_finite_skips_updates_that_are_not_finite(descent: Descent) -> None:
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

    signs = optim.apply_if_finite(optim.lion(), 2)  # whose update is finite, and whose mean would stay infinite
    before = signs.init(params)
    updates, after = signs.update(poison, before, params)
    assert after.skipped == 1 and tree.global_norm(updates) == 0
    assert tree.sha256(after.inner) == tree.sha256(before.inner)


def test_keep_norm(descent: Descent) -> None:
    """The new matrix is the moved one, scaled to the norm of a matrix with orthonormal rows."""
    params, grads = ({"weight": each["head.weight"]} for each in (descent.params, descent.grads[0]))
    transform = optim.keep_norm()
    updates, _ = transform.update(grads, transform.init(params), params)
    moved, new = params["weight"] + grads["weight"], params["weight"] + updates["weight"]
    torch.testing.assert_close(new / new.norm(), moved / moved.norm())
    assert new.norm().item() == pytest.approx(torch.eye(*moved.flatten(1).shape).norm().item())
    vectors = {"bias": torch.ones(3), "scale": torch.tensor(2.0)}
    updates, _ = transform.update(vectors, transform.init(vectors), tree.zeros_like(vectors))
    assert tree.sha256(updates) == tree.sha256(vectors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_keep_norm_of_a_matrix_that_becomes_0(dtype: torch.dtype) -> None:
    params = {"weight": torch.ones(1000, 2, dtype=dtype)}
    transform = optim.keep_norm()
    updates, _ = transform.update(tree.map(torch.neg, params), transform.init(params), params)
    assert optim.apply_updates(params, updates)["weight"].eq(0).all()


def test_vectors_are_not_orthogonalized(descent: Descent) -> None:
    transform = optim.orthogonalize()
    with pytest.raises(
        InputError, match=r"orthogonalize got .*blocks\.0\.bias.* of fewer than two dimensions; give it matrices"
    ):
        transform.update(descent.grads[0], transform.init(descent.params), descent.params)


def test_partition_gives_each_transform_only_its_own_leaves(descent: Descent) -> None:
    transforms = {"matrices": optim.trace(0.5), "rest": optim.scale_by_adam(), "none": optim.trace(0.5)}
    transform = optim.partition(transforms, lambda name, leaf: "matrices" if leaf.ndim > 1 else "rest")
    updates, state = transform.update(descent.grads[0], transform.init(descent.params), descent.params)
    assert list(updates) == list(descent.params) and state.keys() == {"matrices", "rest"}
    names = {name for name, leaf in descent.params.items() if leaf.ndim > 1}
    assert state["matrices"].trace.keys() == names != set()
    assert state["rest"].mu.keys() == descent.params.keys() - names


def test_noise_has_its_variance_and_depends_on_seed_step_and_position() -> None:
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
        "0/b1": 0.9,
        "0/b2": 0.999,
        "0/eps": 1e-8,
        "1/weight_decay": 0.01,
        "2/base_learning_rate": 0.1,
        "2/learning_rate": 0.0,
    }
    changed = optim.set_hyperparams(state, b2=torch.tensor(0.5, dtype=torch.float64))
    assert changed[0].b2 == 0.5 and state[0].b2 == 0.999
    with pytest.raises(
        ValueError, match="no hyperparameter is called 'b3'; there are: b1, b2, base_learning_rate, eps"
    ):
        optim.set_hyperparams(state, b3=torch.tensor(0.5))
    with pytest.raises(ValueError, match="no hyperparameter is called 'b3'"):
        optim.inject_hyperparams(optim.adam(), b3=cosine(10)).init(descent.params)
    with pytest.raises(ValueError, match=r"learning_rate is .* overwritten; set base_learning_rate"):
        optim.inject_hyperparams(optim.adam(), learning_rate=cosine(10)).init(descent.params)


@pytest.mark.parametrize("name", ["scale", "mu"])
def test_a_moment_of_a_scalar_is_no_hyperparameter(name: str) -> None:
    state = optim.adamw().init({name: torch.tensor(1.0), "weight": torch.ones(2)})
    assert optim.hyperparams(state).keys() == optim.hyperparams(optim.adamw().init({"weight": torch.ones(2)})).keys()
    with pytest.raises(InputError, match=f"no hyperparameter is called '{name}'"):
        optim.set_hyperparams(state, **{name: torch.tensor(0.5)})


def test_hyperparameters_of_a_stateless_transform_are_leaves_of_its_state() -> None:
    params = {"weight": torch.full((3,), 3.0)}
    one, two = (optim.clip_by_value(bound).init(params) for bound in (1.0, 2.0))
    assert list(tree.named_leaves(one)) == ["bound"] and one["bound"].dtype == torch.float64
    assert tree.map(torch.add, one, two) == {"bound": 3}
    changed = optim.set_hyperparams(one, bound=torch.tensor(0.5, dtype=torch.float64))
    updates, state = optim.clip_by_value(1.0).update(params, changed, params)
    assert updates["weight"].tolist() == [0.5] * 3 and updates["weight"].dtype == torch.float32
    assert state == {"bound": 0.5} and tree.leaves(optim.identity().init(params)) == []


def test_current_learning_rate_is_that_of_the_latest_update(descent: Descent) -> None:
    _, state = run(optim.adamw(cosine(10), lr=0.1), descent, 6)
    assert optim.current_learning_rate(state).item() == pytest.approx(0.05)  # cos(pi / 2) = 0
    assert optim.current_learning_rate(run(optim.scale(-0.1), descent, 1)[1]) is None


def grad_of_a_loss(params: Params) -> Updates:
    """The gradient of sum(p^2 / 2 + cos(3 p + 1))."""
    return tree.map(lambda p: p - 3 * torch.sin(3 * p + 1), params)


def test_sam_equals_optax(descent: Descent) -> None:
    ours = optim.chain(optim.sam(0.1), optim.sgd(lr=0.02, weight_decay=0.0))
    params, state, update = descent.params, ours.init(descent.params), optim.with_grad_fn(ours.update)
    for _ in range(NUM_STEPS):
        updates, state = update(grad_of_a_loss(params), state, params, grad_fn=grad_of_a_loss)
        params = optim.apply_updates(params, updates)
    with jax.enable_x64(True):
        ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
        theirs = optax.contrib.sam(optax.sgd(0.02, momentum=0.9), ascent, opaque_mode=True, reset_state=False)

        def their_grad_fn(params: dict, step: int) -> dict:
            return jax.tree.map(lambda p: p - 3 * jnp.sin(3 * p + 1), params)

        their_params = tree.map(lambda leaf: jnp.asarray(leaf.numpy()), descent.params)
        their_state = theirs.init(their_params)
        for _ in range(NUM_STEPS):
            their_updates, their_state = theirs.update(
                their_grad_fn(their_params, 0), their_state, their_params, grad_fn=their_grad_fn
            )
            their_params = optax.apply_updates(their_params, their_updates)
    for key, leaf in params.items():
        wanted = torch.tensor(np.asarray(their_params[key])) - descent.params[key]
        assert relative_error(leaf - descent.params[key], wanted) < 1e-10


@pytest.mark.parametrize("before", [optim.clip_by_global_norm(1.0), optim.trace(0.9), optim.add_decayed_weights(0.1)])
def test_the_second_gradient_of_sam_comes_through_the_transforms_before_it(
    before: GradientTransformation, descent: Descent
) -> None:
    params = descent.params
    transform = optim.chain(before, optim.sam(10.0), optim.scale(2.0))
    _, *other_states = transform.init(params)
    _, old_state = before.update(descent.grads[0], before.init(params), params)
    state = (old_state, *other_states)
    updates, new_state = transform.update(grad_of_a_loss(params), state, params, grad_fn=grad_of_a_loss)

    first, wanted_state = before.update(grad_of_a_loss(params), old_state, params)
    norm = tree.global_norm(first)
    climbed = tree.map(lambda p, g: p + 10 * g / norm, params, first)
    second, _ = before.update(grad_of_a_loss(climbed), old_state, climbed)
    difference = tree.map(lambda u, g: u - 2 * g, updates, second)
    assert tree.global_norm(difference) < 1e-10 * tree.global_norm(second)
    assert tree.global_norm(tree.map(torch.sub, second, first)) > 1e-3 * tree.global_norm(first)
    assert tree.sha256(new_state[0]) == tree.sha256(wanted_state)


WRAPPERS: dict[str, Callable[[GradientTransformation], GradientTransformation]] = {
    "chain": lambda transform: optim.chain(transform, optim.scale(2.0)),
    "named_chain": lambda transform: optim.named_chain(first=transform, second=optim.scale(2.0)),
    "multi_steps": lambda transform: optim.multi_steps(transform, 1),
    "apply_if_finite": lambda transform: optim.apply_if_finite(transform, 3),
    "lookahead": lambda transform: optim.lookahead(transform, sync_period=1),
    "inject_hyperparams": lambda transform: optim.inject_hyperparams(transform, base_learning_rate=cosine(10)),
    "schedule_free": optim.schedule_free,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_combinators_pass_grad_fn_on(name: str, descent: Descent) -> None:
    def update(transform: GradientTransformation, grads: Updates) -> Updates:
        wrapped = WRAPPERS[name](optim.chain(transform, optim.scale_by_learning_rate(0.1, cosine(10))))
        state = wrapped.init(descent.params)
        return optim.with_grad_fn(wrapped.update)(grads, state, descent.params, grad_fn=grad_of_a_loss)[0]

    def replace(updates, state, params, *, grad_fn=None):
        return grad_fn(params), state

    always_second = GradientTransformation(optim.identity().init, replace)
    got = update(always_second, descent.grads[0])
    assert tree.sha256(got) == tree.sha256(update(optim.identity(), grad_of_a_loss(descent.params)))


def test_no_gradient_is_computed_unless_a_transform_asks_for_it(descent: Descent) -> None:
    def grad_fn(params: Params) -> Updates:
        raise AssertionError

    transform = optim.lookahead(optim.chain(optim.clip_by_global_norm(1.0), optim.adam()))
    state = transform.init(descent.params)
    updates, _ = optim.with_grad_fn(transform.update)(descent.grads[0], state, descent.params, grad_fn=grad_fn)
    assert updates.keys() == descent.params.keys()


def test_sam_without_grad_fn_is_an_error(descent: Descent) -> None:
    grads, params = descent.grads[0], descent.params
    alone, masked = optim.sam(0.1), optim.masked(optim.sam(0.1), optim.is_matrix)
    with pytest.raises(ValueError, match="sam computes a second gradient, but got no `grad_fn`"):
        alone.update(grads, alone.init(params), params)
    with pytest.raises(ValueError, match="put sam outside `partition` and `masked`"):
        optim.with_grad_fn(masked.update)(grads, masked.init(params), params, grad_fn=grad_of_a_loss)


def test_an_average_of_ones_own_is_evaluated(descent: Descent) -> None:
    class ZerosState(NamedTuple):
        inner: Params

        def evaluation_params(self, params: Params) -> Params:
            return tree.zeros_like(params)

    def update(updates, state, params):
        return updates, state

    own = GradientTransformation(lambda params: ZerosState(params), update)
    _, state = run(optim.chain(optim.adam(), optim.ema_params(0.9), own), descent, 1)
    assert tree.global_norm(optim.evaluation_params(state, descent.params)) == 0


def test_schedule_free_needs_a_learning_rate(descent: Descent) -> None:
    with pytest.raises(ValueError, match="no field of its transform's state is called `learning_rate`"):
        optim.schedule_free(optim.scale(-0.1)).init(descent.params)


def test_masks_by_the_roles_of_a_model() -> None:
    roles = {
        "stem.weight": Role("stem", "matrix", 0),
        "block.weight": Role("trunk", "matrix", 1),
        "norm.weight": Role("trunk", "norm", 2),
        "head.weight": Role("head", "matrix", 2),
        "head.bias": Role("head", "bias", 2),
    }
    leaf = torch.zeros(2, 2)
    assert [name for name in roles if optim.hidden_matrices(roles)(name, leaf)] == ["block.weight"]
    assert [name for name in roles if optim.matrices(roles)(name, leaf)] == [
        "stem.weight",
        "block.weight",
        "head.weight",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.schedule_free_adamw(b1=0.0), r"b1 is 0.0; it must be above 0 and at most 1"),
        (lambda: optim.soap(refresh_every=0), r"refresh_every is 0; it must be 1 or more"),
        (lambda: optim.sgd(momentum=1.0), r"momentum is 1.0; it must be at least 0 and below 1"),
        (lambda: optim.adam(lr=-1e-3), r"lr is -0.001; it must be 0 or more"),
        (lambda: optim.lookahead(optim.adam(), sync_period=0), r"sync_period is 0; it must be 1 or more"),
        (lambda: optim.ema_params(1.0), r"decay is 1.0; it must be at least 0 and below 1"),
    ],
)
def test_options_out_of_range_are_errors(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_nesterov_without_momentum_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    optim.sgd(nesterov=True)
    assert not capsys.readouterr().err
    optim.rmsprop(nesterov=True)
    assert capsys.readouterr().err == "warning: nesterov has no effect with a momentum of 0\n"


@pytest.mark.parametrize(
    "scale",
    [optim.scale_by_adam(), optim.scale_by_adam(nesterov=True), optim.scale_by_belief(), optim.scale_by_radam(b2=0.9)],
)
def test_updates_are_differentiable_backward_as_forward(scale: GradientTransformation, descent: Descent) -> None:
    """<J^T v, u> = <v, J u>, for the parameters after four updates as a function of the first gradient."""
    grads, u, v = descent.grads[0], *descent.grads[4:6]

    def after_four_updates(grads: Params) -> Params:
        params, state = descent.params, scale.init(descent.params)
        for each in (grads, *descent.grads[1:4]):
            updates, state = scale.update(each, state, params)
            params = optim.apply_updates(params, updates)
        return params

    _, forward = torch.func.jvp(after_four_updates, (grads,), (u,))
    (backward,) = torch.func.vjp(after_four_updates, grads)[1](v)
    products = [tree.map(torch.mul, *pair) for pair in ((backward, u), (v, forward))]
    one, other = (sum(leaf.sum().item() for leaf in tree.leaves(each)) for each in products)
    assert one == pytest.approx(other, rel=1e-8) != 0


def test_schedule_free_weights_by_the_highest_rate_so_far(descent: Descent) -> None:
    """Equations 3 to 5 of arXiv 2405.15682 in a plain loop, over a warm-up and a fall of the learning rate."""
    schedule, b1 = cosine(12, warmup_steps=3), 0.9
    optimizer = optim.schedule_free(optim.scale_by_learning_rate(0.5, schedule), b1)
    y, state = run(optimizer, descent, 12)
    z = x = descent.params
    highest = total = 0.0
    for step, grads in enumerate(descent.grads[:12]):
        rate = 0.5 * schedule(torch.tensor(step)).item()
        highest = max(highest, rate)
        total += highest**2
        weight = highest**2 / total if total else 0.0
        z = tree.map(lambda z, g, rate=rate: z - rate * g, z, grads)
        x = tree.map(lambda x, z, weight=weight: (1 - weight) * x + weight * z, x, z)
    for name, leaf in optim.evaluation_params(state, y).items():
        assert relative_error(leaf, x[name]) < 1e-10
        assert relative_error(y[name], (1 - b1) * z[name] + b1 * x[name]) < 1e-10


def test_noise_of_a_leaf_is_that_of_its_name() -> None:
    """So in two groups of leaves it differs."""
    params = {"a": torch.zeros(4, dtype=torch.float64), "b": torch.zeros(4, dtype=torch.float64)}
    transforms = {name: optim.add_noise(1.0, 0.0, seed=0) for name in params}
    both, groups = optim.add_noise(1.0, 0.0, seed=0), optim.partition(transforms, lambda name, leaf: name)
    one, other = (t.update(params, t.init(params), params)[0] for t in (both, groups))
    assert torch.equal(one["a"], other["a"]) and torch.equal(one["b"], other["b"])
    assert not torch.equal(one["a"], one["b"])


def test_what_is_set_or_scheduled_stays_float64(descent: Descent) -> None:
    transform = optim.inject_hyperparams(
        optim.scale_by_adam(), eps=lambda step: torch.where(step < 1, 1, 2), b2=lambda step: 1 - 1 / (step + 2)
    )
    params = descent.params
    state = transform.init(params)
    for step in range(2):
        _, state = transform.update(params, state, params)
        found = {path.rpartition("/")[2]: leaf for path, leaf in optim.hyperparams(state).items()}
        assert found["eps"] == 1 + step and found["b2"].item() == pytest.approx(1 - 1 / (step + 2), rel=1e-6)
        assert found["eps"].dtype == found["b2"].dtype == torch.float64


@pytest.mark.parametrize("make", [optim.scale_by_adam, optim.scale_by_belief, optim.scale_by_radam])
@pytest.mark.parametrize("name", ["eps", "b2"])
def test_one_hyperparameter_alone_is_vmapped(make, name: str, descent: Descent) -> None:
    params, transform = descent.params, make()
    state = transform.init(params)

    def update(value: torch.Tensor) -> Updates:
        return transform.update(params, state._replace(**{name: value}), params)[0]

    values = torch.tensor([0.1, 0.2], dtype=torch.float64)
    for i, each in enumerate(tree.unstack(torch.vmap(update)(values))):
        torch.testing.assert_close(each, update(values[i]))


def test_parametrized_weights_are_matrices() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(3, 4, 3))
    chosen = {name for name, leaf in layer.named_parameters() if optim.is_matrix(name, leaf)}
    assert chosen == {"parametrizations.weight.original1"}
    of_hooks = {
        name: optim.is_matrix(f"0.{name}", torch.ones(2, 2)) for name in ("weight_v", "weight_orig", "weight_g")
    }
    assert of_hooks == {"weight_v": True, "weight_orig": True, "weight_g": False}
