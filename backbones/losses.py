"""Losses: pure functions of logits and labels, and how much each class counts in them. B samples, K classes."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.errors import InputError


class Loss(Protocol):
    """The loss of each sample, [B] float32, or float64 for float64 logits; keyword-only parameters may follow.

    Args:
        logits: [B, K], any floating dtype.
        labels: [B] int64 in [0, K); not used where there are `targets`.
        targets: [B, K] class probabilities, if there are any.
        label_smoothing: weight s in [0, 1) of the uniform distribution in the target: (1 - s) target + s / K.
    """

    def __call__(
        self, logits: Tensor, labels: Tensor, targets: Tensor | None = None, *, label_smoothing: float = 0.0
    ) -> Tensor: ...


def cross_entropy(
    logits: Tensor, labels: Tensor, targets: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy in nats, -sum_k target_k log softmax(logits)_k, of each sample; see `Loss`.

    Label smoothing is that of Szegedy et al., arXiv 1512.00567, section 7.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = labels if targets is None else targets.to(logits.dtype)
    return F.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none")


def binary_cross_entropy(
    logits: Tensor, labels: Tensor, targets: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Binary cross-entropy in nats, the mean over the classes, of each sample; see `Loss`.

    Each class is a question of its own, whether it is in the image (Wightman et al., "ResNet strikes back", arXiv
    2110.00476): -1/K sum_k (target_k log p_k + (1 - target_k) log(1 - p_k)) with p = sigmoid(logits). The mean, as
    timm has it; gradients are those of the sum divided by K. Mixed targets stay the probabilities that they are.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    num_classes = logits.shape[1]
    one_hot = labels[:, None] == torch.arange(num_classes, device=labels.device)  # `F.one_hot` does not vmap
    target = (one_hot if targets is None else targets).to(logits.dtype)
    target = (1 - label_smoothing) * target + label_smoothing / num_classes
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)


LOSSES: dict[str, Loss] = {"cross-entropy": cross_entropy, "binary-cross-entropy": binary_cross_entropy}


def check_loss(name: str, loss: Loss, num_classes: int, device: torch.device) -> None:
    """Raise InputError unless a loss gives that of each sample."""
    labels = torch.zeros(2, dtype=torch.int64, device=device)
    losses = loss(torch.zeros(2, num_classes, device=device), labels, targets=None, label_smoothing=0.0)
    if not isinstance(losses, Tensor) or losses.shape != labels.shape:
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise InputError(f"--loss {name} gives {got} for 2 samples; wanted the loss of each, [2] (reduction='none')")


def balanced_class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """The weight of each class that lets all classes count equally, [K] float32: N / (K' N_k).

    N_k of the N labels are k, and K' classes have any, so that the mean over the samples is 1; scikit-learn calls these
    weights "balanced". A class without samples has weight 0.

    Args:
        labels: [N] int64 in [0, K).
        num_classes: K.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    present = counts > 0
    return present * len(labels) / (present.sum() * counts.clamp(min=1))
