"""Losses: pure functions of logits and labels. B samples, K classes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits: Tensor, labels: Tensor, targets: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of each sample, [B], in nats.

    Args:
        logits: [B, K], any floating dtype; the loss is float32, or float64 for float64 logits.
        labels: [B] int64 in [0, K); not used where there are `targets`.
        targets: [B, K] class probabilities, if there are any.
        label_smoothing: weight in [0, 1) of the uniform distribution in the target (arXiv 1512.00567, section 7).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = labels if targets is None else targets.to(logits.dtype)
    return F.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none")
