"""What is measured beside the loss. B samples, K classes."""

import torch
from torch import Tensor


def in_top_k(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each label is among the k largest logits, [B] bool; a row labelled -1 never is.

    Equal logits count against the label: a model that answers the same for every class is right for none.

    Args:
        logits: [B, K].
        labels: [B] int64 in [0, K), or -1.
        k: how many guesses count; all of them where k >= K.
    """
    own = logits.gather(1, labels.clamp(min=0)[:, None])  # [B, 1]
    at_least_as_large = (logits >= own).sum(dim=1)  # counts the label itself
    is_nan = torch.isnan(logits).any(dim=1)
    return (at_least_as_large <= min(k, logits.shape[1])) & (labels >= 0) & ~is_nan
