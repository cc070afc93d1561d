"""Every optimizer in the train step: compiled in one graph, vmapped over members, saved and resumed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import backbones.tree as tree
from backbones import optim
from backbones.augment import identity
from backbones.component import use
from backbones.data import digits, make_batches
from backbones.experiment import Experiment, Program
from backbones.gradient import grad_and_value
from backbones.models import from_module
from backbones.optim import GradientTransformation
from backbones.optim.schedule import cosine
from backbones.run.checkpoint import Checkpoints
from backbones.train_step import TrainState, TrainStep, init_train_state, make_loss_fn, make_train_step
from backbones.types import CPU, Params, Updates

pytestmark = pytest.mark.slow

BATCHES = make_batches(digits().train, seed=0, batch_size=16, device=CPU)
LEARNING_RATES = [0.001, 0.03]
WELL_CONDITIONED = {"muon": {"bfloat16": False}, "soap": {"eps": 1e-3, "max_size": 16}}
"""Options with which rounding errors stay small: bfloat16 has three digits; large covariances are singular at first."""


class Net(nn.Sequential):
    """A leaf of each kind, and few, so that it compiles fast."""

    def __init__(self) -> None:
        stem = [nn.Conv2d(3, 8, 3, stride=4, bias=False), nn.BatchNorm2d(8, affine=False), nn.ReLU()]
        super().__init__(*stem, nn.Flatten(), nn.Linear(128, 16, bias=False), nn.Linear(16, 10))


def make_step(optimizer: GradientTransformation) -> tuple[TrainState, TrainStep]:
    """A small network in float64, and its step."""
    model = from_module(Net)
    state = init_train_state(model, optimizer, seed=0, device=CPU)
    state = tree.map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, state)
    loss_fn = make_loss_fn(model, label_smoothing=0.1)
    gradient = grad_and_value(loss_fn, state.params, transform="func")

    def normalize(images: torch.Tensor) -> torch.Tensor:
        return (images.double() - 80) / 100

    return state, make_train_step(gradient, optimizer, augment=identity(), normalize=normalize)


def run(state: TrainState, train_step: TrainStep) -> tuple[TrainState, list[torch.Tensor]]:
    losses = []
    for step in range(4):
        state, metrics = train_step(state, BATCHES(step))
        losses.append(metrics["loss"])
    return state, losses


def distance(got: TrainState, wanted: TrainState) -> float:
    difference = tree.map(torch.sub, got.params, wanted.params)
    return (tree.global_norm(difference) / tree.global_norm(wanted.params)).item()


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_its_update_compiles_once_to_one_graph(name: str) -> None:
    """The rest of the step is the same for all; test_train_step.py compiles it whole."""
    optimizer = optim.OPTIMIZERS[name](cosine(10, warmup_steps=2), lr=0.01, **WELL_CONDITIONED.get(name, {}))
    first, _ = make_step(optimizer)

    def grad_fn(params: Params) -> Updates:
        return tree.map(torch.cos, params)

    def update(grads: Updates, state: TrainState) -> TrainState:
        updates, opt_state = optim.with_grad_fn(optimizer.update)(grads, state.opt_state, state.params, grad_fn=grad_fn)
        return state._replace(params=optim.apply_updates(state.params, updates), opt_state=opt_state)

    def after_four(update: Callable[[Updates, TrainState], TrainState]) -> TrainState:
        state = first
        for _ in range(4):
            state = update(grad_fn(state.params), state)
        return state

    torch._dynamo.reset()
    counters.clear()
    compiled = after_four(torch.compile(update, backend="aot_eager", fullgraph=True))
    assert counters["stats"]["unique_graphs"] == 1
    assert distance(compiled, first) > 0 and distance(compiled, after_four(update)) < 1e-9


def test_clipped_sam_compiles_to_one_graph() -> None:
    """The second gradient comes through a stateful transform, and through wrappers."""
    sam = optim.chain(optim.clip_by_global_norm(0.1), optim.trace(0.5), optim.sam_sgd(lr=0.01))
    optimizer = optim.lookahead(optim.apply_if_finite(optim.multi_steps(sam, 2), 3), sync_period=2)
    eager, _ = run(*make_step(optimizer))
    state, train_step = make_step(optimizer)
    torch._dynamo.reset()
    compiled, _ = run(state, torch.compile(train_step, backend="aot_eager", fullgraph=True))
    assert distance(compiled, eager) < 1e-9


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_vmapped_members_train_at_their_own_learning_rates(name: str) -> None:
    """Members with learning rates of their own in one step equal their runs."""
    optimizer = optim.OPTIMIZERS[name](lr=1.0, **WELL_CONDITIONED.get(name, {}))
    state, train_step = make_step(optimizer)
    rates = [torch.tensor(rate, dtype=torch.float64) for rate in LEARNING_RATES]
    members = [
        state._replace(opt_state=optim.set_hyperparams(state.opt_state, base_learning_rate=rate)) for rate in rates
    ]
    stacked = tree.map(lambda *leaves: torch.stack(leaves), *members)
    stacked, losses = run(stacked, torch.vmap(train_step, in_dims=(0, None)))
    ends = []
    for i, member in enumerate(members):
        wanted, wanted_losses = run(member, train_step)
        assert distance(tree.map(lambda leaf, i=i: leaf[i], stacked), wanted) < 1e-9
        torch.testing.assert_close([loss[i] for loss in losses], wanted_losses, rtol=1e-9, atol=0)
        ends.append(wanted)
    assert distance(ends[0], ends[-1]) > 1e-3


def test_the_learning_rate_of_muon_is_that_of_its_hidden_matrices() -> None:
    state, train_step = make_step(optim.muon(cosine(10), lr=0.02, adamw_lr=0.003))
    _, metrics = train_step(state, BATCHES(0))
    assert metrics["learning_rate"] == 0.02


def test_an_optimizer_may_end_in_any_transform() -> None:
    state, train_step = make_step(optim.chain(optim.trace(0.9), optim.scale(-0.1)))
    sgd_state, sgd_step = make_step(optim.sgd(lr=0.1, momentum=0.9, weight_decay=0.0))
    batch = BATCHES(0)
    state, metrics = train_step(state, batch)
    sgd_state, sgd_metrics = sgd_step(sgd_state, batch)
    assert "learning_rate" not in metrics and sgd_metrics["learning_rate"] == 0.1
    assert distance(state, sgd_state) < 1e-12


def test_an_update_of_three_parameters_is_a_whole_optimizer() -> None:
    def update(updates, state, params):
        return tree.map(lambda g: -0.1 * g, updates), state

    state, train_step = make_step(GradientTransformation(lambda params: (), update))
    sgd_state, sgd_step = make_step(optim.sgd(lr=0.1, momentum=0.0, weight_decay=0.0))
    batch = BATCHES(0)
    assert distance(train_step(state, batch)[0], sgd_step(sgd_state, batch)[0]) < 1e-12


def test_sam_takes_the_gradient_at_the_climbed_parameters() -> None:
    """Foret et al., equations 2 and 3: g at p + rho g / |g|; the loss and BatchNorm statistics are those of p."""
    sgd, sam = (make(lr=0.1, momentum=0.0, weight_decay=0.0) for make in (optim.sgd, optim.sam_sgd))
    state, sgd_step = make_step(sgd)
    sam_state, sam_step = make_step(sam)
    batch = BATCHES(0)
    stepped, metrics = sgd_step(state, batch)
    grads = tree.map(lambda before, after: (before - after) / 0.1, state.params, stepped.params)
    norm = tree.global_norm(grads)
    climbed = tree.map(lambda p, g: p + 0.05 * g / norm, state.params, grads)
    from_climbed, climbed_metrics = sgd_step(state._replace(params=climbed), batch)
    sam_stepped, sam_metrics = sam_step(sam_state, batch)
    wanted = tree.map(lambda p, c, after: p + (after - c), state.params, climbed, from_climbed.params)
    assert distance(sam_stepped, state._replace(params=wanted)) < 1e-12
    assert sam_metrics["loss"] == metrics["loss"] < climbed_metrics["loss"]
    assert sam_metrics["grad_norm"] == metrics["grad_norm"]
    assert tree.sha256(sam_stepped.model_state) == tree.sha256(stepped.model_state)


def train(program: Program, state: TrainState, steps: range) -> TrainState:
    for step in steps:
        state, _ = program.train_step(state, program.batches(step))
    return state


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_resumes_bit_for_bit(name: str, experiment: Experiment, tmp_path: Path) -> None:
    """With clipping and an average of the parameters, from the files of a checkpoint."""
    ema = None if name == "schedule-free-adamw" else 0.9  # which has an average already
    experiment = dataclasses.replace(experiment, optim=use(optim.OPTIMIZERS[name]), clip=1.0, ema=ema, steps=6)
    (folder := tmp_path / "checkpoints").mkdir()
    program, checkpoints = experiment.make(), Checkpoints(folder, experiment=experiment, info=digits().info)
    first = train(program, program.state, range(3))
    checkpoints.save(first, {}, weights=program.weights_of(first))
    straight = train(program, first, range(3, 6))
    restored, _ = checkpoints.restore(like=experiment.make().state)
    resumed = train(program, restored, range(3, 6))
    assert tree.sha256(resumed) == tree.sha256(straight)
    assert program.evaluate(resumed) == program.evaluate(straight)  # of the average
