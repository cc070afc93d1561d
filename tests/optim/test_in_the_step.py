"""Every alias inside the train step: compiled into its graph, over a stack of members, saved and resumed."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

import backbones.distributed as distributed
import backbones.tree as tree
import train
from backbones import optim
from backbones.data import channel_statistics, train_batch
from backbones.datasets import DATASETS
from backbones.models.resnet import BasicBlock, resnet
from backbones.optim import GradientTransformation
from backbones.optim.schedule import cosine
from backbones.train_step import TrainState, TrainStep, init_train_state, make_loss_fn, make_train_step
from experiments import Experiment
from experiments.base import OPTIM

SPLIT = DATASETS["digits"]().train
RATES = [0.001, 0.003, 0.01, 0.03]
STEADY = {"muon": {"bfloat16": False}, "soap": {"eps": 1e-3, "max_size": 16}}
"""Options under which rounding stays rounding: bfloat16 keeps three digits; large covariances begin singular."""


def make_step(optimizer: GradientTransformation) -> tuple[TrainState, TrainStep]:
    """A small ResNet in float64, and its step."""
    model = resnet(BasicBlock, (1,), (3, 16, 16), 10)
    mean, std = (statistic.double() for statistic in channel_statistics(SPLIT))
    state = init_train_state(model, optimizer, seed=0, device=torch.device("cpu"))
    state = tree.map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, state)
    loss_fn = make_loss_fn(model, label_smoothing=0.1)
    grad_and_value = distributed.grad_and_value(loss_fn, state.params)
    return state, make_train_step(
        grad_and_value, optim.make_update(optimizer), augment=lambda keys, images: images, mean=mean, std=std
    )


def run(state: TrainState, train_step: TrainStep) -> tuple[TrainState, list[torch.Tensor]]:
    losses = []
    for step in range(4):
        state, metrics = train_step(state, train_batch(SPLIT, seed=0, step=step, batch_size=16))
        losses.append(metrics["loss"])
    return state, losses


def distance(got: TrainState, wanted: TrainState) -> float:
    difference = tree.map(torch.sub, got.params, wanted.params)
    return (tree.global_norm(difference) / tree.global_norm(wanted.params)).item()


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_compiles_once_into_one_graph(name: str) -> None:
    optimizer = optim.OPTIMIZERS[name](cosine(10, warmup_steps=2), lr=0.01, **STEADY.get(name, {}))
    eager, eager_losses = run(*make_step(optimizer))
    state, train_step = make_step(optimizer)
    torch._dynamo.reset()
    counters.clear()
    compiled, losses = run(state, torch.compile(train_step, backend="aot_eager", fullgraph=True))
    assert counters["stats"]["unique_graphs"] == 1
    assert distance(compiled, eager) < 1e-9
    torch.testing.assert_close(losses, eager_losses, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_members_of_a_stack_train_at_their_own_rates(name: str) -> None:
    """Four members at four rates in one step are four runs."""
    optimizer = optim.OPTIMIZERS[name](lr=1.0, **STEADY.get(name, {}))
    state, train_step = make_step(optimizer)
    members = [
        state._replace(opt_state=optim.set_hyperparams(state.opt_state, peak=torch.tensor(rate, dtype=torch.float64)))
        for rate in RATES
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


def test_the_learning_rate_of_muon_is_that_of_its_matrices() -> None:
    state, train_step = make_step(optim.muon(cosine(10), lr=0.02, adamw_lr=0.003))
    _, metrics = train_step(state, train_batch(SPLIT, seed=0, step=0, batch_size=16))
    assert metrics["learning_rate"] == 0.02


def test_sam_takes_its_gradient_at_the_worst_point_nearby() -> None:
    """Foret et al., eq. 2 and 3: g at p + rho g / |g|; loss and statistics are those of p."""
    sgd, sam = (make(lr=0.1, momentum=0.0, weight_decay=0.0) for make in (optim.sgd, optim.sam_sgd))
    state, sgd_step = make_step(sgd)
    sam_state, sam_step = make_step(sam)
    batch = train_batch(SPLIT, seed=0, step=0, batch_size=16)
    stepped, metrics = sgd_step(state, batch)
    grads = tree.map(lambda before, after: (before - after) / 0.1, state.params, stepped.params)
    norm = tree.global_norm(grads)
    worst = tree.map(lambda p, g: p + 0.05 * g / norm, state.params, grads)
    from_worst, worse_metrics = sgd_step(state._replace(params=worst), batch)
    sam_stepped, sam_metrics = sam_step(sam_state, batch)
    wanted = tree.map(lambda p, w, after: p + (after - w), state.params, worst, from_worst.params)
    assert distance(sam_stepped, state._replace(params=wanted)) < 1e-12
    assert sam_metrics["loss"] == metrics["loss"] < worse_metrics["loss"]
    assert tree.sha256(sam_stepped.model_state) == tree.sha256(stepped.model_state)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_resumes_bit_for_bit(name: str, experiment: Experiment, tmp_path: Path) -> None:
    """With clipping and an average of the parameters, and through the files of a checkpoint."""
    experiment = dataclasses.replace(
        experiment, optim=OPTIM[name](), clip=1.0, ema=0.9, steps=6, eval_every=3, save_every=3
    )
    straight = train.main(experiment, run_dir=tmp_path)
    resumed = train.main(experiment, run_dir=tmp_path, resume="3")
    for name in ("steps", "params_sha256", "loss", "top1"):  # of the average, the last two
        assert resumed[name] == straight[name]
