import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from timm.loss import BinaryCrossEntropy
from torch import Tensor

from backbones.commands.evaluate import evaluate
from backbones.component import options_of, use
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.losses import LOSSES, balanced_class_weights, binary_cross_entropy, check_loss, cross_entropy
from backbones.run.run import run
from backbones.types import CPU


def test_is_minus_log_probability_of_the_smoothed_target() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    for smoothing in (0.0, 0.1):
        target = torch.full((6, 5), smoothing / 5)
        target[torch.arange(6), labels] += 1 - smoothing
        expected = -(target * (logits.exp() / logits.exp().sum(1, keepdim=True)).log()).sum(1)
        torch.testing.assert_close(cross_entropy(logits, labels, label_smoothing=smoothing), expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_are_mixed_losses(name: str, smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels, others = torch.randn(6, 5), torch.arange(6) % 5, (torch.arange(6) + 2) % 5
    one_hot = [F.one_hot(each, 5).float() for each in (labels, others)]
    loss = LOSSES[name]
    mixed = loss(logits, labels, 0.3 * one_hot[0] + 0.7 * one_hot[1], label_smoothing=smoothing)
    parts = [loss(logits, each, label_smoothing=smoothing) for each in (labels, others)]
    torch.testing.assert_close(mixed, 0.3 * parts[0] + 0.7 * parts[1])


@pytest.mark.parametrize("name", LOSSES)
def test_computes_in_float32_at_least(name: str) -> None:
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert LOSSES[name](torch.ones(1, 4, dtype=dtype), torch.tensor([1])).dtype == expected


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_is_that_of_timm_and_torch(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    losses = binary_cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(losses.mean(), BinaryCrossEntropy(smoothing=smoothing)(logits, labels))
    one = F.binary_cross_entropy_with_logits(logits[2], torch.eye(5)[2] * (1 - smoothing) + smoothing / 5)
    torch.testing.assert_close(losses[2], one)
    targets = torch.rand(6, 5)
    mixed = binary_cross_entropy(logits, labels, targets)
    torch.testing.assert_close(mixed.mean(), BinaryCrossEntropy(smoothing=smoothing)(logits, targets))


def test_class_weights_are_those_of_scikit_learn() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 3])  # none of class 2, nor of 4
    weights = balanced_class_weights(labels, 5)
    present = np.array([0, 1, 3])
    expected = compute_class_weight("balanced", classes=present, y=labels.numpy())
    assert weights.dtype == torch.float32 and weights[present].tolist() == pytest.approx(expected.tolist())
    assert weights[[2, 4]].tolist() == [0, 0]
    assert weights[labels].mean().item() == pytest.approx(1)


def test_a_loss_gives_that_of_each_sample() -> None:
    check_loss("weighted", partial(weighted, weight=torch.ones(7)), 7, CPU)
    with pytest.raises(InputError, match=r"--loss mean gives \(\) for 2 samples; wanted the loss of each, \[2\]"):
        check_loss("mean", lambda *given, **options: cross_entropy(*given, **options).mean(), 3, CPU)
    with pytest.raises(InputError, match="--loss number gives float for 2 samples"):
        check_loss("number", lambda *given, **options: 1.0, 3, CPU)


def weighted(logits, labels, targets=None, *, label_smoothing=0.0, weight=None):
    return F.cross_entropy(logits, labels, weight=weight, reduction="none")


def misspelt(logits, labels, target=None, *, label_smoothing=0.0):
    return F.cross_entropy(logits, labels, reduction="none")


def without_defaults(logits: Tensor, labels: Tensor, targets: Tensor | None, *, label_smoothing: float) -> Tensor:
    """As the message about a loss asks for it."""
    return cross_entropy(logits, labels, targets, label_smoothing=label_smoothing)


def test_a_loss_needs_no_defaults(experiment: Experiment, tmp_path: Path) -> None:
    results = []
    for loss in (cross_entropy, without_defaults):
        run_dir = tmp_path / loss.__name__
        results.append(run(dataclasses.replace(experiment, loss=use(loss), steps=2), run_dir=run_dir))
        evaluate(run_dir)
    assert results[0]["params_sha256"] == results[1]["params_sha256"] and results[0]["loss"] == results[1]["loss"]


def test_a_loss_has_the_parameters_of_ours(experiment: Experiment) -> None:
    assert options_of(weighted).keys() == {"weight"} and not options_of(cross_entropy)
    dataclasses.replace(experiment, loss=use(weighted)).make_loss()
    with pytest.raises(
        InputError, match=r"--loss misspelt has no parameter targets; wanted a function \(logits, labels"
    ):
        dataclasses.replace(experiment, loss=use(misspelt, target=None)).make_loss()
