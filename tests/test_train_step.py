import dataclasses
import math
from collections.abc import Iterable
from functools import partial

import pytest
import torch
from helpers.steps import losses, make_program, num_graphs, train
from torch import Tensor, nn

import backbones.experiment
import backbones.random as random
import backbones.tree as tree
from backbones.augment import Augment
from backbones.component import use
from backbones.data import digits
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.gradient import grad_and_value
from backbones.losses import binary_cross_entropy
from backbones.models.layers import conv3x3
from backbones.models.resnet import BasicBlock, resnet
from backbones.optim import sgd
from backbones.optim.schedule import cosine
from backbones.random import Stream
from backbones.train_step import TrainState, make_loss_fn, seeded
from backbones.types import Batch, Metrics
from experiments.digits import digits_vit_tiny

small_resnet = partial(resnet, BasicBlock, (1,))

VIT = dataclasses.replace(
    digits_vit_tiny,
    model=digits_vit_tiny.model.replace(width=32, depth=1, heads=2, mlp_width=64, dropout=0.0),
    optim=use(sgd, lr=0.05),
    schedule=use(cosine, warmup_steps=2),
    steps=10,
    batch_size=32,
    label_smoothing=0.1,
    compile="off",
)
DROPOUT_VIT = dataclasses.replace(VIT, model=VIT.model.replace(dropout=0.1))
RESNET = dataclasses.replace(VIT, model=use(small_resnet))


@pytest.mark.parametrize("experiment", [VIT, pytest.param(RESNET, marks=pytest.mark.slow)], ids=["vit", "resnet"])
def test_is_the_step_of_a_plain_torch_loop(experiment: Experiment) -> None:
    """The same five steps written the usual way, in float64: leaves, backward(), torch.optim, a scheduler."""
    info = digits().info
    model, batches, augment = experiment.make_model(info), experiment.make().batches, experiment.augment.make()
    mean, std = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (info.mean, info.std))
    params, model_state = model.init(random.generator(0, Stream.INIT))
    params = {name: leaf.double().requires_grad_() for name, leaf in params.items()}
    model_state = {name: leaf.double() for name, leaf in model_state.items()}
    optimizer = torch.optim.SGD(params.values(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: cosine(10, warmup_steps=2)(torch.tensor(s)).item()
    )
    expected = []

    def norm(leaves: Iterable[Tensor]) -> float:
        return torch.cat([leaf.detach().flatten() for leaf in leaves]).norm().item()

    for step in range(5):
        batch = batches(step)
        batch = augment(random.fold_in(random.fold_in(random.key(0), step), batch.index), batch)
        logits, model_state = model.apply(params, model_state, (batch.images - mean) / std, train=True)
        loss = torch.nn.functional.cross_entropy(logits, batch.labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        before = tree.map(torch.clone, params)
        optimizer.step()
        metrics = {
            "loss": loss.item(),
            "accuracy": (logits.argmax(1) == batch.labels).double().mean().item(),
            "grad_norm": norm(leaf.grad for leaf in params.values()),
            "update_norm": norm(tree.map(torch.sub, params, before).values()),
            "param_norm": norm(params.values()),
            "learning_rate": scheduler.get_last_lr()[0],
            "nonfinite": 0,
        }
        scheduler.step()
        expected.append(metrics)

    state, history = train(experiment, dtype=torch.float64)
    for metrics, wanted in zip(history, expected, strict=True):
        assert {name: value.item() for name, value in metrics.items()} == pytest.approx(wanted, rel=1e-10)
    for name, leaf in state.params.items():
        torch.testing.assert_close(leaf, params[name].detach(), rtol=1e-8, atol=1e-10)
    for name, leaf in state.model_state.items():
        torch.testing.assert_close(leaf.double(), model_state[name], rtol=1e-8, atol=1e-10)
    assert state.step == 5


@pytest.mark.parametrize("experiment", [VIT, RESNET], ids=["vit", "resnet"])
def test_autograd_and_torch_func_give_the_same_bits(experiment: Experiment) -> None:
    """With BatchNorm and accumulation, and a leaf that the loss does not depend on."""
    program = dataclasses.replace(experiment, accumulate=2).make()
    model = experiment.make_model(digits().info)
    loss_fn = make_loss_fn(model, label_smoothing=0.1)
    params = {**program.state.params, "unused": torch.ones(3)}
    model_state, batch = program.state.model_state, program.batches(0)
    batch = batch._replace(images=batch.images.float() / 255)
    halves = [tree.map(lambda leaf, i=i: leaf[16 * i : 16 * i + 16], batch) for i in range(2)]

    def loss_of_known(params, model_state, batch):
        return loss_fn({name: leaf for name, leaf in params.items() if name != "unused"}, model_state, batch)

    results = [
        grad_and_value(loss_of_known, params, transform=transform)(params, model_state, halves)
        for transform in ("autograd", "func")
    ]
    assert tree.sha256(results[0]) == tree.sha256(results[1])
    assert not results[0][0]["unused"].any()
    assert not any(leaf.requires_grad for leaf in tree.leaves(results[0]))


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [VIT, RESNET], ids=["vit", "resnet"])
def test_compiled_is_one_graph_that_is_never_compiled_again(experiment: Experiment) -> None:
    experiment = dataclasses.replace(experiment, nonfinite="skip")
    eager_state, eager = train(experiment, change_rate_at=3)
    state, compiled = train(dataclasses.replace(experiment, compile="on"), change_rate_at=3)
    assert num_graphs() == 1
    assert compiled[4]["learning_rate"] < 0.01 < compiled[2]["learning_rate"]
    assert losses(compiled) == losses(eager)
    assert tree.sha256(state) == tree.sha256(eager_state)


class SmallResidual(nn.Module):
    """What a ResNet has, with one convolution: inductor takes as long as there are layers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.norm, self.head = conv3x3(3, 8, stride=2), nn.BatchNorm2d(8), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(torch.relu_(x + self.norm(x)).mean((2, 3)))


@pytest.mark.slow
def test_inductor_agrees_with_eager() -> None:
    """In float64, whose rounding hides nothing; test_resume.py has bfloat16."""
    experiment = dataclasses.replace(RESNET, model=use(SmallResidual))
    eager_state, eager = train(experiment, dtype=torch.float64, change_rate_at=3)
    compiled = dataclasses.replace(experiment, compile="on")
    state, history = train(compiled, backend="inductor", dtype=torch.float64, change_rate_at=3)
    assert num_graphs() == 1
    assert losses(history) == pytest.approx(losses(eager), rel=1e-10)
    difference = tree.map(torch.sub, state.params, eager_state.params)
    assert tree.global_norm(difference) < 1e-10 * tree.global_norm(eager_state.params)


@pytest.mark.slow
def test_bfloat16_compiles_and_keeps_parameters_float32() -> None:
    experiment = dataclasses.replace(DROPOUT_VIT, precision="bfloat16")
    state, eager = train(experiment, num_steps=3)
    assert all(leaf.dtype == torch.float32 for leaf in state.params.values())
    _, compiled = train(dataclasses.replace(experiment, compile="on"), num_steps=3)
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-2)
    _, exact = train(DROPOUT_VIT, num_steps=3)
    assert losses(exact) != losses(eager)
    assert losses(exact) == pytest.approx(losses(eager), rel=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [2, 8])
def test_accumulation_is_the_same_step(accumulate: int) -> None:
    state, history = train(VIT)
    other, other_history = train(dataclasses.replace(VIT, accumulate=accumulate))
    assert losses(other_history) == pytest.approx(losses(history), rel=1e-5)
    assert [m["accuracy"].item() for m in other_history] == pytest.approx([m["accuracy"].item() for m in history])
    for ours, theirs in zip(tree.leaves(other.params), tree.leaves(state.params), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def one_less() -> Augment:
    """Leaves out the first row of each batch."""
    return lambda keys, batch: tree.map(lambda leaf: leaf[1:], batch)


def nothing() -> Augment:
    """Lacks a `return`."""
    return lambda keys, batch: None


def test_a_batch_that_is_not_equal_micro_batches_is_refused() -> None:
    with pytest.raises(InputError, match=r"a batch of [0-9]+ images is not 2 equal micro-batches"):
        train(dataclasses.replace(VIT, accumulate=2, augment=use(one_less)), num_steps=1)
    with pytest.raises(InputError, match=r"a batch of [0-9]+ images is not 2 equal micro-batches"):
        dataclasses.replace(VIT, accumulate=2, augment=use(one_less), compile="on").make()
    with pytest.raises(InputError, match="the augmentation gives a NoneType; wanted a Batch"):
        train(dataclasses.replace(VIT, augment=use(nothing)), num_steps=1)


@pytest.mark.parametrize("skip", [False, True])
def test_nonfinite_steps_are_found_and_can_be_skipped(skip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_bad_loss_fn(model, **options):
        loss_fn = make_loss_fn(model, **options)

        def bad_loss_fn(params, model_state, batch: Batch):
            loss, aux = loss_fn(params, model_state, batch)
            return loss * torch.where(batch.labels.sum() == 0, math.nan, 1.0), aux  # bad where all labels are 0

        return bad_loss_fn

    monkeypatch.setattr(backbones.experiment, "make_loss_fn", make_bad_loss_fn)
    program = dataclasses.replace(RESNET, nonfinite="skip" if skip else "stop").make()
    batch = program.batches(0)
    state, metrics = program.train_step(program.state, batch)
    assert metrics["nonfinite"] == 0
    before = tree.sha256(state._replace(step=state.step * 0))
    state, metrics = program.train_step(state, batch._replace(labels=torch.zeros_like(batch.labels)))
    assert metrics["nonfinite"] == 1 and state.step == 2
    assert (tree.sha256(state._replace(step=state.step * 0)) == before) == skip
    state, metrics = program.train_step(state, batch)
    assert metrics["nonfinite"] == (0 if skip else 1)


def test_each_rank_and_step_draws_dropout_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, state = [], TrainState(torch.tensor(3), torch.tensor(0), {}, {}, ())

    def draw(state: TrainState, batch: None) -> tuple[TrainState, Metrics]:
        drawn.append(torch.rand(()).item())
        return state._replace(step=state.step + 1), {}

    step = seeded(draw, 0)
    for rank, at in ((0, 3), (1, 3), (1, 3), (1, 4)):
        monkeypatch.setattr("backbones.distributed.rank", lambda rank=rank: rank)
        step(state._replace(step=torch.tensor(at)), None)
    assert drawn[1] == drawn[2] and len({*drawn}) == 3


def test_random_numbers_follow_the_seed_and_the_step_alone() -> None:
    first, _ = train(DROPOUT_VIT)
    torch.rand(100)
    second, _ = train(DROPOUT_VIT)
    assert tree.sha256(first) == tree.sha256(second)


def test_weights_and_targets_are_in_the_loss() -> None:
    """A weight counts as so many equal samples; soft targets of one class are labels."""
    program = make_program(VIT, torch.float64)
    batch = program.batches(0)
    one_hot = torch.nn.functional.one_hot(batch.labels, 10).float()
    model = VIT.make_model(digits().info)
    loss_fn = make_loss_fn(model, label_smoothing=0.1)
    images = batch.images.double() / 255

    def loss(**fields) -> float:
        replaced = batch._replace(images=images, **fields)
        return loss_fn(program.state.params, program.state.model_state, replaced)[0].item()

    assert loss(targets=one_hot, labels=torch.zeros_like(batch.labels)) == pytest.approx(loss(), rel=1e-12)
    assert loss(weight=torch.full((32,), 0.5)) == pytest.approx(0.5 * loss(), rel=1e-12)
    halves = torch.arange(32) < 16
    parts = [loss(weight=mask.float()) for mask in (halves, ~halves)]
    assert sum(parts) == pytest.approx(loss(), rel=1e-12)


def test_a_class_weight_is_the_weight_of_its_samples() -> None:
    """Of a mixed sample it is the mean of those of its classes."""
    program = make_program(VIT, torch.float64)
    batch, weights = program.batches(0), torch.arange(10.0)
    batch = batch._replace(images=batch.images.double() / 255)
    model = VIT.make_model(digits().info)
    params, model_state = program.state.params, program.state.model_state
    plain, weighted = (make_loss_fn(model, label_smoothing=0.0, class_weights=each) for each in (None, weights))

    def loss(loss_fn, **fields) -> float:
        return loss_fn(params, model_state, batch._replace(**fields))[0].item()

    assert loss(weighted) == pytest.approx(loss(plain, weight=batch.labels.float()), rel=1e-12)
    others = batch.labels.flip(0)
    mixed = (torch.eye(10)[batch.labels] + 3 * torch.eye(10)[others]) / 4
    mean = (batch.labels.float() + 3 * others.float()) / 4
    assert loss(weighted, targets=mixed) == pytest.approx(loss(plain, targets=mixed, weight=mean), rel=1e-6)


@pytest.mark.slow
def test_accumulation_and_a_loss_with_class_weights_compile() -> None:
    experiment = dataclasses.replace(VIT, accumulate=2, loss=use(binary_cross_entropy), class_weights="auto")
    eager_state, eager = train(experiment)
    state, compiled = train(dataclasses.replace(experiment, compile="on"))
    assert num_graphs() == 1
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-5)
    for ours, theirs in zip(tree.leaves(state.params), tree.leaves(eager_state.params), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
