import math
from collections.abc import Callable

import pytest
import torch
from torch._dynamo.utils import counters

import backbones.distributed as distributed
import backbones.random as random
import backbones.tree as tree
from backbones import optim
from backbones.data import Dataset, channel_statistics, train_batch
from backbones.datasets import DATASETS
from backbones.models import MODELS, Model, in_precision
from backbones.models.resnet import BasicBlock, resnet
from backbones.optim import GradientTransformation
from backbones.optim.schedule import cosine
from backbones.train_step import TrainState, init_train_state, make_eval_step, make_loss_fn, make_train_step
from backbones.types import Batch, Metrics

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return DATASETS["digits"]()


def make_vit(dropout: float = 0.0) -> Model:
    return MODELS["vit-tiny"]((3, 16, 16), 10, patch_size=8, width=32, depth=2, heads=2, mlp_width=64, dropout=dropout)


def make_resnet() -> Model:
    return resnet(BasicBlock, (1, 1), (3, 16, 16), 10)


def make_resnet18() -> Model:
    return MODELS["resnet18"]((3, 16, 16), 10)


def run(
    digits: Dataset,
    model: Model,
    *,
    optimizer: GradientTransformation | None = None,
    dtype: torch.dtype = torch.float32,
    num_steps: int = 5,
    batch_size: int = 32,
    backend: str | None = None,
    change_rate_at: int | None = None,
    **options: object,
) -> tuple[TrainState, list[Metrics]]:
    """Train for a few steps, eagerly or compiled into one graph."""
    mean, std = (statistic.to(dtype) for statistic in channel_statistics(digits.train))
    optimizer = optimizer or optim.sgd(cosine(10, warmup_steps=2), lr=0.05)
    state = init_train_state(model, optimizer, seed=0, device=CPU)
    if dtype == torch.float64:
        state = tree.map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, state)
    model = in_precision(model, options.pop("precision", torch.float32))
    loss_fn = make_loss_fn(model, label_smoothing=0.1)
    grad_and_value = distributed.grad_and_value(loss_fn, state.params)
    train_step = make_train_step(
        grad_and_value, optim.make_update(optimizer), augment=digits.augment, mean=mean, std=std, **options
    )
    if backend is not None:
        torch._dynamo.reset()
        counters.clear()
        train_step = torch.compile(train_step, backend=backend, fullgraph=True)
    history = []
    for step in range(num_steps):
        random.seed_torch(0, step)
        if step == change_rate_at:
            tree.find(state.opt_state, optim.ScaleByLearningRateState)[0].peak.mul_(0.2)
        state, metrics = train_step(state, train_batch(digits.train, seed=0, step=step, batch_size=batch_size))
        history.append(metrics)
    return state, history


def losses(history: list[Metrics]) -> list[float]:
    return [metrics["loss"].item() for metrics in history]


@pytest.mark.parametrize("make_model", [make_vit, make_resnet])
def test_is_the_step_of_a_plain_torch_loop(make_model, digits: Dataset) -> None:
    """The same five steps written the usual way, in float64: leaves, backward(), torch.optim, a scheduler."""
    model = make_model()
    mean, std = (statistic.double() for statistic in channel_statistics(digits.train))
    params, model_state = model.init(random.generator(0, 0))
    params = {name: leaf.double().requires_grad_() for name, leaf in params.items()}
    model_state = {name: leaf.double() for name, leaf in model_state.items()}
    optimizer = torch.optim.SGD(params.values(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: cosine(10, warmup_steps=2)(torch.tensor(s)).item()
    )
    expected = []
    for step in range(5):
        batch = train_batch(digits.train, seed=0, step=step, batch_size=32)
        keys = random.fold_in(random.fold_in(random.key(0), step), batch.index)
        images = (digits.augment(keys, batch.images) - mean[:, None, None]) / std[:, None, None]
        logits, model_state = model.apply(params, model_state, images, train=True)
        loss = torch.nn.functional.cross_entropy(logits, batch.labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        expected.append(loss.item())

    state, history = run(digits, model, dtype=torch.float64)
    assert losses(history) == pytest.approx(expected, rel=1e-10)
    for name, leaf in state.params.items():
        torch.testing.assert_close(leaf, params[name].detach(), rtol=1e-8, atol=1e-10)
    for name, leaf in state.model_state.items():
        torch.testing.assert_close(leaf.double(), model_state[name], rtol=1e-8, atol=1e-10)
    assert state.step == 5


@pytest.mark.parametrize("make_model", [make_vit, make_resnet])
def test_compiled_is_one_graph_that_is_never_compiled_again(make_model, digits: Dataset) -> None:
    eager_state, eager = run(digits, make_model(), change_rate_at=3, skip_nonfinite=True)
    state, compiled = run(digits, make_model(), change_rate_at=3, skip_nonfinite=True, backend="aot_eager")
    assert counters["stats"]["unique_graphs"] == 1
    assert compiled[4]["learning_rate"] < 0.01 < compiled[2]["learning_rate"]
    assert losses(compiled) == losses(eager)
    assert tree.sha256(state) == tree.sha256(eager_state)


@pytest.mark.parametrize(
    ("make_model", "dtype", "tolerance"),
    [  # a ViT in float32: test_distributed.py
        (make_resnet18, torch.float32, 1e-4),
        (make_resnet, torch.float64, 1e-12),  # torch 2.11 cannot compile attention in float64
    ],
)
def test_inductor_agrees_with_eager(
    make_model: Callable[[], Model], dtype: torch.dtype, tolerance: float, digits: Dataset
) -> None:
    """The rates are gentle: steeper ones amplify float32's rounding, in a ResNet a hundredfold in a step."""
    options = {"optimizer": optim.adam(cosine(1000, warmup_steps=100)), "dtype": dtype, "change_rate_at": 3}
    eager_state, eager = run(digits, make_model(), **options)
    state, compiled = run(digits, make_model(), backend="inductor", **options)
    assert counters["stats"]["unique_graphs"] == 1
    assert losses(compiled) == pytest.approx(losses(eager), rel=tolerance)
    difference = tree.map(torch.sub, state.params, eager_state.params)
    assert tree.global_norm(difference) < tolerance * tree.global_norm(eager_state.params)


def test_bfloat16_compiles_and_keeps_parameters_float32(digits: Dataset) -> None:
    options = {"precision": torch.bfloat16, "num_steps": 3}
    state, eager = run(digits, make_vit(dropout=0.1), **options)
    assert all(leaf.dtype == torch.float32 for leaf in state.params.values())
    _, compiled = run(digits, make_vit(dropout=0.1), backend="aot_eager", **options)
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-2)
    _, exact = run(digits, make_vit(dropout=0.1), num_steps=3)
    assert losses(exact) != losses(eager)
    assert losses(exact) == pytest.approx(losses(eager), rel=2e-2)


@pytest.mark.parametrize(("accumulate", "backend"), [(2, None), (8, None), (2, "aot_eager")])
def test_accumulation_is_the_same_step(accumulate: int, backend: str | None, digits: Dataset) -> None:
    state, history = run(digits, make_vit())
    other, other_history = run(digits, make_vit(), accumulate=accumulate, backend=backend)
    assert losses(other_history) == pytest.approx(losses(history), rel=1e-5)
    assert [m["accuracy"].item() for m in other_history] == pytest.approx([m["accuracy"].item() for m in history])
    for ours, theirs in zip(tree.leaves(other.params), tree.leaves(state.params), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("compiled", [True, False])
def test_state_is_donated_to_a_compiled_step(compiled: bool, digits: Dataset) -> None:
    model, (mean, std) = make_vit(), channel_statistics(digits.train)
    optimizer = optim.adam()
    state = init_train_state(model, optimizer, seed=0, device=CPU)
    grad_and_value = distributed.grad_and_value(make_loss_fn(model, label_smoothing=0.0), state.params)
    train_step = make_train_step(
        grad_and_value, optim.make_update(optimizer), augment=digits.augment, mean=mean, std=std
    )
    train_step = torch.compile(train_step, backend="aot_eager", fullgraph=True, disable=not compiled)
    addresses = [leaf.data_ptr() for leaf in tree.leaves(state)]
    new_state, _ = train_step(state, train_batch(digits.train, seed=0, step=0, batch_size=8))
    assert ([leaf.data_ptr() for leaf in tree.leaves(new_state)] == addresses) == compiled
    assert new_state.step == 1 and state.step == (1 if compiled else 0)


@pytest.mark.parametrize("skip", [False, True])
def test_nonfinite_steps_are_seen_and_can_be_skipped(skip: bool, digits: Dataset) -> None:
    model, optimizer = make_resnet(), optim.sgd()
    mean, std = channel_statistics(digits.train)
    state = init_train_state(model, optimizer, seed=0, device=CPU)
    loss_fn = make_loss_fn(model, label_smoothing=0.0)

    def bad_loss_fn(params, model_state, batch: Batch):
        loss, aux = loss_fn(params, model_state, batch)
        return loss * torch.where(batch.labels.sum() == 0, math.nan, 1.0), aux  # a batch of zeros is poison

    grad_and_value = distributed.grad_and_value(bad_loss_fn, state.params)
    train_step = make_train_step(
        grad_and_value,
        optim.make_update(optimizer),
        augment=digits.augment,
        mean=mean,
        std=std,
        skip_nonfinite=skip,
    )
    batch = train_batch(digits.train, seed=0, step=0, batch_size=8)
    state, metrics = train_step(state, batch)
    assert metrics["nonfinite"] == 0
    before = tree.sha256(state._replace(step=state.step * 0))
    state, metrics = train_step(state, batch._replace(labels=torch.zeros_like(batch.labels)))
    assert metrics["nonfinite"] == 1 and state.step == 2
    assert (tree.sha256(state._replace(step=state.step * 0)) == before) == skip
    state, metrics = train_step(state, batch)
    assert metrics["nonfinite"] == (0 if skip else 1)


def test_random_numbers_follow_the_seed_and_the_step_alone(digits: Dataset) -> None:
    first, _ = run(digits, make_vit(dropout=0.1))
    torch.rand(100)
    second, _ = run(digits, make_vit(dropout=0.1))
    assert tree.sha256(first) == tree.sha256(second)


def test_eval_step_sums_over_rows_that_count(digits: Dataset) -> None:
    model = make_resnet()
    mean, std = channel_statistics(digits.train)
    params, model_state = model.init(random.generator(0))
    eval_step = make_eval_step(model, mean=mean, std=std)
    images, labels = digits.test.images[:6], digits.test.labels[:6].clone()
    whole = eval_step(params, model_state, Batch(images[:4], labels[:4], torch.arange(4)))
    labels[4:] = -1
    padded = eval_step(params, model_state, Batch(images, labels, torch.arange(6)))
    assert padded.count == 4
    for got, wanted in zip(padded, whole, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    normalized = (images[:4].float() - mean[:, None, None]) / std[:, None, None]
    logits = model.apply(params, model_state, normalized, train=False)[0]
    expected = torch.nn.functional.cross_entropy(logits, labels[:4], reduction="sum").item()
    assert whole.loss.item() == pytest.approx(expected, rel=1e-5)
    assert whole.top1 == (logits.argmax(dim=1) == labels[:4]).sum()
