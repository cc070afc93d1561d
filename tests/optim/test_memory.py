"""Transforms whose state holds what they were given, against plain loops."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.runs import relative_error
from torch import nn

import backbones.tree as tree
from backbones import optim
from backbones.augment import make_normalize
from backbones.component import use
from backbones.data import digits
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.optim import GradientTransformation
from backbones.run.checkpoint import read_checkpoint, saved_weights
from backbones.run.run import run
from backbones.train_step import init_train_state
from backbones.types import OptState, Params, Updates


def pull_to_start() -> GradientTransformation:
    """The state is the parameters themselves."""

    def update(updates: Updates, start: Params, params: Params) -> tuple[Updates, OptState]:
        return tree.map(lambda g, p, s: g + 0.1 * (p - s), updates, params, start), start

    return GradientTransformation(lambda params: params, update)


def heavy_ball(lr: float = 0.05) -> GradientTransformation:
    """Momentum by the previous position, of which the state is a view."""

    def update(updates: Updates, state: OptState, params: Params) -> tuple[Updates, OptState]:
        updates = tree.map(lambda g, p, before: -lr * g + 0.5 * (p - before), updates, params, state["before"])
        return updates, {"before": tree.map(lambda p: p.detach().view_as(p), params)}

    return GradientTransformation(lambda params: {"before": params}, update)


def mean_with_the_one_before_last() -> GradientTransformation:
    """The mean of this update and the one before the last: the state passes its leaves on."""

    def init(params: Params) -> OptState:
        zeros = tree.zeros_like(params)
        return {"a_last": zeros, "b_before": zeros}

    def update(updates: Updates, state: OptState, params: Params) -> tuple[Updates, OptState]:
        new = tree.map(lambda g, old: (g + old) / 2, updates, state["b_before"])
        return new, {"a_last": tree.map(torch.clone, updates), "b_before": state["a_last"]}

    return GradientTransformation(init, update)


def barzilai_borwein() -> GradientTransformation:
    """The step length |s|^2 / s y, with s and y the last changes of position and gradient (1988, equation 5)."""

    def init(params: Params) -> OptState:
        return {"params": params, "grads": tree.zeros_like(params)}

    def update(updates: Updates, state: OptState, params: Params) -> tuple[Updates, OptState]:
        s, y = (tree.map(torch.sub, *each) for each in ((params, state["params"]), (updates, state["grads"])))
        ss, sy = (sum(leaf.sum() for leaf in tree.leaves(tree.map(torch.mul, s, other))) for other in (s, y))
        length = torch.where(sy > 0, ss / sy, 0.05).clamp(max=0.1)
        return tree.map(lambda g: -length * g, updates), {"params": params, "grads": updates}

    return GradientTransformation(init, update)


def all_of_them() -> GradientTransformation:
    different = optim.partition(
        {"matrix": heavy_ball(), "vector": barzilai_borwein()},
        lambda name, leaf: "matrix" if leaf.ndim > 1 else "vector",
    )
    return optim.chain(pull_to_start(), mean_with_the_one_before_last(), different)


def by_hand(params: Params, grad: Callable[[Params, int], Updates], steps: int) -> Params:
    """`all_of_them` in plain Python. Nothing is written over."""
    start, positions, gradients, scaled = params, [params, params], [], [tree.zeros_like(params)]
    for step in range(steps):
        g = {name: leaf + 0.1 * (params[name] - start[name]) for name, leaf in grad(params, step).items()}
        gradients.append(g)
        if step >= 2:
            g = {name: (leaf + gradients[-3][name]) / 2 for name, leaf in g.items()}
        else:
            g = {name: leaf / 2 for name, leaf in g.items()}
        before, after = positions[-2], {}
        s = torch.cat([params[name] - before[name] for name in g if g[name].ndim == 1])
        y = torch.cat([g[name] - scaled[-1][name] for name in g if g[name].ndim == 1])
        length = min((s @ s / (s @ y)).item(), 0.1) if s @ y > 0 else 0.05
        for name, p in params.items():
            step_from_here = 0.5 * (p - before[name]) - 0.05 * g[name] if p.ndim > 1 else -length * g[name]
            after[name] = p + step_from_here
        params = after
        positions.append(params)
        scaled.append(g)
    return params


class Net(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(768, 16), nn.Tanh(), nn.Linear(16, num_classes))


OURS = Experiment(
    name="ours", data=use(digits), model=use(Net), optim=use(all_of_them), steps=8, batch_size=64, device="cpu"
)


@pytest.fixture(scope="module")
def wanted() -> Params:
    program, info = OURS.make(), digits().info
    normalize = make_normalize(info.mean, info.std, torch.device("cpu"))
    weights = program.state.params

    def grad(params: Params, step: int) -> Updates:
        batch = program.batches(step)
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
        hidden = torch.tanh(F.linear(normalize(batch.images).flatten(1), leaves["1.weight"], leaves["1.bias"]))
        F.cross_entropy(F.linear(hidden, leaves["3.weight"], leaves["3.bias"]), batch.labels).backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    return by_hand({name: leaf.clone() for name, leaf in weights.items()}, grad, 8)


def check(got: Params, wanted: Params) -> None:
    moved = tree.map(torch.sub, wanted, OURS.make().state.params)
    for name, leaf in got.items():
        assert relative_error(leaf, wanted[name]) < 1e-3 * moved[name].norm() / wanted[name].norm()


@pytest.mark.parametrize("stop", [8, 3])
def test_states_that_keep_what_they_were_given(stop: int, wanted: Params, tmp_path: Path) -> None:
    run(dataclasses.replace(OURS, steps=stop), run_dir=tmp_path / "run")
    if stop < 8:
        run(OURS, run_dir=tmp_path / "run", resume="latest")
    check(saved_weights(read_checkpoint(tmp_path / "run" / "checkpoints" / "8").arrays)[0], wanted)


class OneLayer(nn.Sequential):
    """A leaf of each kind, so that it compiles fast."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(768, num_classes))


@pytest.mark.slow
def test_compiled_states_that_keep_what_they_were_given() -> None:
    """As eager ones do."""
    params = {}
    for how in ("off", "on"):
        program = dataclasses.replace(OURS, model=use(OneLayer), compile=how).make()
        start, state = tree.map(torch.clone, program.state.params), program.state
        for step in range(8):
            state, _ = program.train_step(state, program.batches(step))
        params[how] = state.params
    difference, moved = (tree.map(torch.sub, params["off"], each) for each in (params["on"], start))
    for name, leaf in difference.items():
        assert leaf.norm() < 1e-3 * moved[name].norm()


def test_the_first_state_has_memory_of_its_own() -> None:
    state = OURS.make().state
    pointers = [leaf.untyped_storage().data_ptr() for leaf in tree.leaves(state)]
    assert len({*pointers}) == len(pointers)


def test_a_number_in_the_state_is_refused() -> None:
    counting = GradientTransformation(lambda params: {"count": 0}, lambda updates, state, params: (updates, state))
    model = OURS.make_model(digits().info)
    with pytest.raises(InputError, match=r"opt_state/count of the optimizer is 0, of type int; .* hold tensors only"):
        init_train_state(model, counting, seed=0, device=torch.device("cpu"))


def test_a_label_of_no_transform_is_refused() -> None:
    params = {"head.weight": torch.zeros(2, 2)}
    with pytest.raises(InputError, match=r"the label 'b' of head\.weight has no transform; there are: a"):
        optim.partition({"a": optim.sgd()}, lambda name, leaf: "b").init(params)
