"""What is measured beside the loss. B samples, K classes."""

import torch
from torch import Tensor


def in_top_k(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each label is among the k largest logits, [B] bool; a row labelled -1 never is.

    Of equal logits the lower class comes first, so that each row has one order even where bfloat16 makes logits equal.

    Args:
        logits: [B, K].
        labels: [B] int64 in [0, K), or -1.
        k: how many guesses count; all of them where k >= K.
    """
    label = labels.clamp(min=0)[:, None]  # [B, 1]
    own = logits.gather(1, label)
    comes_first = (logits > own) | ((logits == own) & (torch.arange(logits.shape[1], device=logits.device) < label))
    is_nan = torch.isnan(logits).any(dim=1)
    return (comes_first.sum(dim=1) < k) & (labels >= 0) & ~is_nan
