"""The examples of docs/torch_func.md: their numbers against plain autograd, finite differences and training again."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.steps import images_in, make_program
from torch import Tensor, nn

import backbones.random as random
import backbones.tree as tree
from backbones.component import use
from backbones.data import digits
from backbones.experiment import Experiment, Program
from backbones.metrics import calibration, in_top_k
from backbones.optim import set_hyperparams
from backbones.types import Params
from docs.examples import ensemble, make_losses, mean, plain_sgd, small_resnet, small_vit, train, whole
from docs.examples.averages import DECAYS, adam_with_averages
from docs.examples.hessian import hvp, largest_eigenvalue
from docs.examples.hypergradient import loss_after
from docs.examples.influence import influences
from docs.examples.per_sample_gradients import per_sample_gradients

ROOT = Path(__file__).parent.parent
FILES = [path for path in sorted((ROOT / "docs" / "examples").glob("*.py")) if path.stem != "__init__"]
EXAMPLES = ("averages", "ensemble", "hessian", "hypergradient", "influence", "per_sample_gradients")


class Tanh(nn.Sequential):
    """102 parameters, of which one can afford the Hessian."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, num_classes))


class Linear(nn.Sequential):
    """Softmax regression: its loss is convex."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(12, num_classes))


def in_float64(model: type[nn.Module], batch_size: int) -> tuple[Program, Callable[[Params], Tensor]]:
    """A program, and the losses of its first batch."""
    program = make_program(replace(small_vit, model=use(model), batch_size=batch_size), torch.float64)
    return program, make_losses(program, program.state, program.batches(0))


def flat(params: Params) -> Tensor:
    return torch.cat([leaf.flatten() for leaf in params.values()])


def unflat(vector: Tensor, like: Params) -> Params:
    parts = vector.split([leaf.numel() for leaf in like.values()])
    return {name: part.view_as(leaf) for (name, leaf), part in zip(like.items(), parts, strict=True)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_file_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 40


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"num_updates": 2} if name == "hypergradient" else {}
    importlib.import_module(f"docs.examples.{name}").main(num_steps=2, **options)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2 and "nan" not in "".join(lines)
    assert f"python -m docs.examples.{name}\n" in (ROOT / "docs" / "torch_func.md").read_text()


@pytest.mark.parametrize("experiment", [small_vit, small_resnet], ids=lambda experiment: experiment.name)
def test_per_sample_gradients_are_those_of_a_loop(experiment: Experiment) -> None:
    program = replace(experiment, batch_size=6).make()
    state, batch = train(program, 2), program.batches(2)
    grads = per_sample_gradients(program, state.params, state.model_state, batch)
    for i in range(6):
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in state.params.items()}
        logits = program.predict(leaves, state.model_state, batch.images[i : i + 1])
        F.cross_entropy(logits, batch.labels[i : i + 1]).backward()
        for name, leaf in leaves.items():
            torch.testing.assert_close(grads[name][i], leaf.grad, rtol=1e-4, atol=1e-5)


def test_the_ensemble_is_that_of_separate_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    members = [replace(member, optim=plain_sgd.replace(lr=0.1)) for member in ensemble.MEMBERS[:3]]
    monkeypatch.setattr(ensemble, "MEMBERS", members)
    test = whole(members[0].data.make().test)
    programs = [member.make() for member in members]
    states = [train(program, 3) for program in programs]
    pairs = zip(programs, states, strict=True)
    wanted = torch.stack([program.predict(state.params, {}, test.images) for program, state in pairs])
    torch.testing.assert_close(ensemble.ensemble_logits(3, test.images), wanted, rtol=1e-5, atol=1e-5)
    ensemble.main(num_steps=3)
    mean = torch.stack([logits.softmax(dim=1) for logits in wanted]).mean(dim=0)
    top1, error = in_top_k(mean, test.labels, 1).double().mean(), calibration(mean.log(), test.labels).error
    assert capsys.readouterr().out.splitlines()[-1] == f"mean: top-1 {top1:.2%}, ECE {error:.2%}"


def test_the_largest_eigenvalue_is_that_of_the_dense_hessian() -> None:
    program, losses = in_float64(Tanh, batch_size=40)
    params = program.state.params
    dense = torch.autograd.functional.hessian(lambda vector: losses(unflat(vector, params)).mean(), flat(params))
    wanted = max(torch.linalg.eigvalsh(dense), key=abs)
    torch.testing.assert_close(largest_eigenvalue(mean(losses), params, 200), wanted, rtol=1e-8, atol=0)


def test_a_hessian_of_attention_times_a_vector_is_a_difference_of_gradients() -> None:
    program = make_program(replace(small_vit, batch_size=8), torch.float64)
    losses, params = make_losses(program, program.state, program.batches(0)), program.state.params
    vector = tree.map(lambda leaf: torch.randn(leaf.shape, generator=random.generator(0), dtype=leaf.dtype), params)

    def grad_at(distance: float) -> Tensor:
        moved = {name: (leaf + distance * vector[name]).requires_grad_() for name, leaf in params.items()}
        return flat(dict(zip(moved, torch.autograd.grad(mean(losses)(moved), list(moved.values())), strict=True)))

    wanted = (grad_at(1e-6) - grad_at(-1e-6)) / 2e-6
    torch.testing.assert_close(flat(hvp(mean(losses), params, vector)), wanted, rtol=1e-5, atol=1e-6)


def test_influence_is_that_of_training_again_without_the_image() -> None:
    damping, size, (program, losses) = 0.1, 200, in_float64(Linear, batch_size=200)
    like, test = program.state.params, make_losses(program, program.state, program.batches(1))

    def test_loss(params: Params) -> Tensor:
        return test(params)[0]

    def trained(weight: Tensor) -> Params:
        """The minimum of sum_i weight_i l_i / N + damping |p|^2 / 2, by Newton's method."""

        def objective(vector: Tensor) -> Tensor:
            return (weight * losses(unflat(vector, like))).sum() / size + damping / 2 * vector.square().sum()

        vector, grad, hessian = torch.zeros_like(flat(like)), torch.func.grad(objective), torch.func.hessian(objective)
        for _ in range(8):
            vector = vector - torch.linalg.solve(hessian(vector), grad(vector))
        assert grad(vector).norm() < 1e-10
        return unflat(vector, like)

    every = torch.ones(size, dtype=torch.float64)
    got = influences(losses, test_loss, trained(every), damping)
    one = F.one_hot(got.abs().argmax(), size)
    derivative = (test_loss(trained(every - 1e-4 * one)) - test_loss(trained(every + 1e-4 * one))) / 2e-4
    torch.testing.assert_close(got.abs().max(), derivative.abs(), rtol=1e-3, atol=0)
    before = test_loss(trained(every))
    for i in got.abs().topk(3).indices:
        torch.testing.assert_close(got[i], test_loss(trained(every - F.one_hot(i, size))) - before, rtol=0.1, atol=0)


def test_averages_are_those_of_a_plain_recursion() -> None:
    program = replace(small_vit, optim=use(adam_with_averages)).make()
    state, sums = program.state, [tree.zeros_like(program.state.params) for _ in DECAYS]
    for step in range(4):
        state, _ = program.train_step(state, program.batches(step))
        sums = [
            tree.map(lambda a, p, d=d: d * a + (1 - d) * p, each, state.params)
            for d, each in zip(DECAYS, sums, strict=True)
        ]
    for d, each, average in zip(DECAYS, sums, tree.unstack(state.opt_state[-1]), strict=True):
        wanted = tree.map(lambda a, d=d: a / (1 - d**4), each)
        torch.testing.assert_close(program.weights_of(state._replace(opt_state=average))[0], wanted)
    assert program.weights_of(state._replace(opt_state=()))[0] is state.params


def pure_program(experiment: Experiment) -> Program:
    with images_in(torch.float64):
        step = experiment.make_pure_step(digits())
    return make_program(experiment, torch.float64)._replace(train_step=step)


def check_slope(loss: Callable[[Tensor], Tensor], lr: float, *, rtol: float) -> None:
    """Forward mode against a central difference."""
    at = torch.tensor(lr, dtype=torch.float64)
    value, slope = torch.func.jvp(loss, (at,), (torch.ones_like(at),))
    assert slope.abs() > 1e-3
    torch.testing.assert_close(value, loss(at))
    torch.testing.assert_close(slope, (loss(at + 1e-6) - loss(at - 1e-6)) / 2e-6, rtol=rtol, atol=0)


def test_the_hypergradient_is_a_difference_of_losses() -> None:
    program = pure_program(replace(small_vit, batch_size=8, optim=plain_sgd.replace(momentum=0.9)))
    check_slope(lambda lr: loss_after(lr, program, 4), lr=0.01, rtol=1e-6)


def test_a_pure_step_with_batch_norm_is_differentiable_too() -> None:
    """The gradient that it takes has a derivative by the learning rate; running statistics have none."""
    program = pure_program(replace(small_resnet, batch_size=8, optim=plain_sgd, schedule=small_vit.schedule))

    def loss(lr: Tensor) -> Tensor:
        opt_state = set_hyperparams(program.state.opt_state, base_learning_rate=lr)
        state = train(program._replace(state=program.state._replace(opt_state=opt_state)), 2)
        return program.train_step(state, program.batches(2))[1]["loss"]

    check_slope(loss, lr=1e-3, rtol=1e-3)  # a difference steps over kinks of ReLU
