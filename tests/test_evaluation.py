import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backbones.random as random
import backbones.tree as tree
from backbones.augment import make_normalize
from backbones.data import in_memory, make_batches
from backbones.evaluation import EvalSums, make_eval_step, make_evaluate, make_predict, make_weights_of
from backbones.losses import binary_cross_entropy
from backbones.models import Model, from_module
from backbones.models.base import make_apply
from backbones.models.resnet import BasicBlock, resnet
from backbones.models.vit import vit
from backbones.optim.average import EmaParamsState
from backbones.train_step import TrainState
from backbones.tta import average_views
from backbones.types import CPU, Batch, Params


def weights_of(state: TrainState):
    return state.params, state.model_state


def test_evaluate_averages_over_samples_not_batches() -> None:
    images = torch.zeros(5, 1, 2, 2, dtype=torch.uint8)
    split = images, torch.arange(5)
    source = in_memory(split, split, tuple("01234"), CPU).test

    def eval_step(params, model_state, batch) -> EvalSums:
        weight = batch.weight.double()
        values = (batch.labels, batch.labels == 4, torch.ones(len(weight)), torch.ones(len(weight)))
        return EvalSums(*((value * weight).sum() for value in values))

    evaluate = make_evaluate(eval_step, source, weights_of, batch_size=2, device=CPU)
    assert evaluate(TrainState(None, None, {}, {}, ())) == {"loss": 10 / 5, "top1": 1 / 5, "top5": 1.0}


def test_eval_step_sums_over_rows_that_count() -> None:
    model = resnet(BasicBlock, (1, 1), (3, 16, 16), 10)
    params, model_state = model.init(random.generator(0))
    normalize = make_normalize((100.0,) * 3, (50.0,) * 3, CPU)
    eval_step = make_eval_step(model, normalize)
    images = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8, generator=random.generator(1))
    batch = Batch(images, torch.arange(6), None, torch.tensor([1.0] * 4 + [0.0] * 2), torch.arange(6), torch.zeros(6))
    padded = eval_step(params, model_state, batch)
    whole = eval_step(params, model_state, tree.map(lambda leaf: leaf[:4], batch))
    assert padded.weight == 4
    for got, wanted in zip(padded, whole, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    logits = model.apply(params, model_state, normalize(images[:4]), train=False)[0]
    labels = torch.arange(4)
    assert whole.loss.item() == pytest.approx(F.cross_entropy(logits, labels, reduction="sum").item(), rel=1e-5)
    assert whole.top1 == (logits.argmax(dim=1) == labels).sum()


def test_predict_is_vmapped_and_differentiated_twice_through_attention() -> None:
    model, normalize = (
        vit((3, 16, 16), 10, patch_size=8, width=16, depth=1, heads=2),
        make_normalize((9,) * 3, (5,) * 3, CPU),
    )
    params, model_state = model.init(random.generator(0))
    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8, generator=random.generator(1))
    predict = make_predict(model, normalize)
    wanted = model.apply(params, model_state, normalize(images), train=False)[0]
    torch.testing.assert_close(predict(params, model_state, images), wanted)

    def loss(params: Params, image: torch.Tensor) -> torch.Tensor:
        return predict(params, model_state, image[None]).square().sum()

    def forward_over_reverse(image: torch.Tensor) -> Params:
        return torch.func.jvp(lambda params: torch.func.grad(loss)(params, image), (params,), (params,))[1]

    def reverse_over_reverse(image: torch.Tensor) -> Params:
        pull_back = torch.func.vjp(lambda params: torch.func.grad(loss)(params, image), params)[1]
        return pull_back(params)[0]

    torch.testing.assert_close(torch.vmap(forward_over_reverse)(images), torch.vmap(reverse_over_reverse)(images))


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_eval_step_takes_its_loss_and_its_views(compile: bool) -> None:
    model, normalize = resnet(BasicBlock, (1, 1), (3, 16, 16), 10), make_normalize((100.0,) * 3, (50.0,) * 3, CPU)
    params, model_state = model.init(random.generator(0))
    eval_step = make_eval_step(model, normalize, loss=binary_cross_entropy, tta="flip+shift")
    if compile:
        eval_step = torch.compile(eval_step, backend="aot_eager", fullgraph=True)
    images = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8, generator=random.generator(1))
    labels = torch.arange(6)
    sums = eval_step(params, model_state, Batch(images, labels, None, torch.ones(6), labels, torch.zeros(6)))

    def apply(images: torch.Tensor) -> torch.Tensor:
        return model.apply(params, model_state, images, train=False)[0]

    logits = average_views(apply, normalize(images), "flip+shift")
    targets = F.one_hot(labels, 10).float()
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1).sum()
    assert sums.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert sums.top1 == (logits.argmax(dim=1) == labels).sum()


@pytest.mark.slow
def test_averaged_parameters_are_evaluated_with_batch_norm_statistics_of_their_own() -> None:
    """The statistics become those of the training images under the average, whatever they were before."""
    images = torch.randint(0, 256, (64, 3, 8, 8), generator=random.generator(0), dtype=torch.uint8)
    split = images, torch.arange(64) % 10
    dataset, model = in_memory(split, split, tuple("0123456789"), CPU), resnet(BasicBlock, (1,), (3, 8, 8), 10)
    normalize = make_normalize(dataset.info.mean, dataset.info.std, CPU)
    params, model_state = model.init(random.generator(0))
    params["head.weight"] *= 100  # so that the loss depends on what comes before the head
    batches = make_batches(dataset.train, seed=0, batch_size=64, device=CPU)
    averaged_weights = make_weights_of(model, normalize, batches, jit=lambda function: function)
    evaluate = make_evaluate(
        make_eval_step(model, normalize), dataset.test, averaged_weights, batch_size=64, device=CPU
    )
    step = torch.tensor(1)
    opt_state = (EmaParamsState(step, torch.tensor(0.9), params),)
    garbage = tree.map(torch.zeros_like, params)
    wrong = tree.map(lambda leaf: leaf + 0.1, model_state)
    state = TrainState(step, step, garbage, wrong, opt_state)
    averaged = evaluate(state)
    assert averaged != pytest.approx(evaluate(TrainState(step, step, params, wrong, ())), rel=0.5)
    logits = model.apply(params, model_state, normalize(images), train=True)[0]  # by the batch, which is all
    assert averaged["loss"] == pytest.approx(F.cross_entropy(logits, split[1]).item(), rel=0.06)
    assert evaluate(state, averaged_weights(state)) == averaged
    for norm in model.skeleton.modules():
        assert getattr(norm, "momentum", 0.1) == 0.1
    slow = make_slow(model)
    other = make_weights_of(slow, normalize, batches, jit=lambda function: function)(state)
    for name, leaf in averaged_weights(state)[1].items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(other[1][name], leaf)


def make_slow(model: Model) -> Model:
    """The model with other momenta, or none, on which the statistics of an average do not depend."""
    slow = copy.deepcopy(model.skeleton)
    for i, norm in enumerate(each for each in slow.modules() if isinstance(each, nn.BatchNorm2d)):
        norm.momentum = 0.01 * i or None
    return model._replace(skeleton=slow, apply=make_apply(slow))


@pytest.mark.slow
def test_statistics_of_an_average_are_those_of_all_batches_and_do_not_depend_on_what_was_drawn_before() -> None:
    images = torch.randint(0, 256, (640, 3, 8, 8), generator=random.generator(0), dtype=torch.uint8)
    split = images, torch.arange(640) % 10
    dataset = in_memory(split, split, tuple("0123456789"), CPU)
    model = resnet(BasicBlock, (2,), (3, 8, 8), 10, drop_path=0.5)
    normalize = make_normalize(dataset.info.mean, dataset.info.std, CPU)
    batches = make_batches(dataset.train, seed=0, batch_size=16, device=CPU)
    weights_of = make_weights_of(model, normalize, batches, jit=lambda function: function)
    params, model_state = model.init(random.generator(0))
    step = torch.tensor(1)
    state = TrainState(
        step, step, tree.zeros_like(params), model_state, (EmaParamsState(step, torch.tensor(0.9), params),)
    )
    torch.manual_seed(1)
    one = weights_of(state)
    torch.manual_seed(2)
    assert tree.sha256(weights_of(state)) == tree.sha256(one)
    maps = [F.conv2d(normalize(batches(i).images), params["stem.0.weight"], padding=1) for i in range(50)]
    mean = torch.stack([each.mean((0, 2, 3)) for each in maps]).mean(0)
    torch.testing.assert_close(one[1]["stem.1.running_mean"], mean, rtol=1e-4, atol=1e-5)


def test_buffers_that_training_does_not_change_are_left_as_they_are() -> None:
    """Integers too, as swin has them."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 10)
            self.register_buffer("order", torch.tensor([2, 0, 1]))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.mean(dim=(2, 3))[:, self.order])

    split = torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.arange(4)
    dataset, model, asked = in_memory(split, split, tuple("0123"), CPU), from_module(Net), []
    every = make_batches(dataset.train, seed=0, batch_size=4, device=CPU)
    normalize = make_normalize(dataset.info.mean, dataset.info.std, CPU)
    batches = lambda step: asked.append(step) or every(step)  # noqa: E731
    weights_of = make_weights_of(model, normalize, batches, jit=lambda function: function)
    params, model_state = model.init(random.generator(0))
    step = torch.tensor(1)
    average = tree.map(lambda leaf: leaf + 1, params)
    state = TrainState(step, step, params, model_state, (EmaParamsState(step, torch.tensor(0.9), average),))
    found = weights_of(state)
    assert tree.sha256(found) == tree.sha256((average, model_state)) and asked == [0]


class Uncounted(nn.BatchNorm2d):
    """Some norms of one's own do not count how often they are applied."""

    def forward(self, x: Tensor) -> Tensor:
        arguments = self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        return F.batch_norm(x, *arguments)


def test_a_norm_that_does_not_count() -> None:
    def net(norm: nn.Module) -> Model:
        head = nn.Linear(3, 10)
        return from_module(lambda: nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head))

    images = torch.randint(0, 256, (64, 3, 8, 8), generator=random.generator(0), dtype=torch.uint8)
    split, step, found = (images, torch.arange(64) % 10), torch.tensor(1), []
    dataset = in_memory(split, split, tuple("0123456789"), CPU)
    normalize = make_normalize((0.0,) * 3, (1.0,) * 3, CPU)
    batches = make_batches(dataset.train, seed=0, batch_size=64, device=CPU)
    silent = Uncounted(3)
    silent.num_batches_tracked = None
    for norm in (nn.BatchNorm2d(3), Uncounted(3), silent):
        model = net(norm)
        params, model_state = model.init(random.generator(0))
        weights_of = make_weights_of(model, normalize, batches, jit=lambda function: function)
        opt_state = (EmaParamsState(step, torch.tensor(0.9), params),)
        found.append(weights_of(TrainState(step, step, tree.zeros_like(params), model_state, opt_state))[1])
    for each in found[1:]:
        assert torch.equal(each["0.running_mean"], found[0]["0.running_mean"])
        assert torch.equal(each["0.running_var"], found[0]["0.running_var"])


def test_a_norm_that_is_applied_twice_has_the_statistics_of_both() -> None:
    """In the running mean each application counts 0.9 times the one after it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.head = nn.Linear(3, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.conv(self.norm(self.conv(x)))).mean(dim=(2, 3)))

    images = torch.randint(0, 256, (64, 3, 8, 8), generator=random.generator(0), dtype=torch.uint8)
    split = images, torch.arange(64) % 10
    dataset, model = in_memory(split, split, tuple("0123456789"), CPU), from_module(Net)
    normalize = make_normalize(dataset.info.mean, dataset.info.std, CPU)
    batches = make_batches(dataset.train, seed=0, batch_size=64, device=CPU)
    weights_of = make_weights_of(model, normalize, batches, jit=lambda function: function)
    params, model_state = model.init(random.generator(0))
    params["norm.bias"] += 1.0
    step = torch.tensor(1)
    opt_state = (EmaParamsState(step, torch.tensor(0.9), params),)
    _, found = weights_of(TrainState(step, step, tree.zeros_like(params), model_state, opt_state))

    def conv(x: Tensor) -> Tensor:
        return F.conv2d(x, params["conv.weight"], params["conv.bias"], padding=1)

    first = conv(normalize(images))
    second = conv(F.batch_norm(first, None, None, params["norm.weight"], params["norm.bias"], training=True))
    for name, statistic in (("mean", torch.mean), ("var", torch.var)):
        expected = (0.9 * statistic(first, dim=(0, 2, 3)) + statistic(second, dim=(0, 2, 3))) / 1.9
        torch.testing.assert_close(found[f"norm.running_{name}"], expected, rtol=1e-4, atol=1e-5)


def test_the_count_of_a_norm_that_is_frozen_stays_as_it_is() -> None:
    """Where statistics are means over all batches, it says how much the next one counts."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.first, self.second = (nn.BatchNorm2d(3, momentum=None) for _ in "12")
            self.head = nn.Linear(3, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(self.conv(x))).mean(dim=(2, 3)))

    images = torch.randint(0, 256, (64, 3, 4, 4), generator=random.generator(0), dtype=torch.uint8)
    split = images, torch.arange(64) % 10
    dataset, model = in_memory(split, split, tuple("0123456789"), CPU), from_module(Net)
    normalize = make_normalize(dataset.info.mean, dataset.info.std, CPU)
    batches = make_batches(dataset.train, seed=0, batch_size=64, device=CPU)
    params, model_state = model.init(random.generator(0))
    model_state = {name: leaf + 7 if name.endswith("tracked") else leaf for name, leaf in model_state.items()}
    frozen = model._replace(apply=make_apply(model.skeleton, in_evaluation=["first"]))
    weights_of = make_weights_of(frozen, normalize, batches, jit=lambda function: function)
    step = torch.tensor(1)
    opt_state = (EmaParamsState(step, torch.tensor(0.9), params),)
    _, found = weights_of(TrainState(step, step, tree.zeros_like(params), model_state, opt_state))
    assert found["first.num_batches_tracked"] == 7
