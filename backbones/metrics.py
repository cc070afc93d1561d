"""What is measured beside the loss. B samples, K classes, M bins."""

from typing import NamedTuple

import torch
from torch import Tensor


def in_top_k(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each label is among the k largest logits, [B] bool; False for a row labelled -1 or with a NaN.

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


class ClassScores(NamedTuple):
    """How well each class is found, [K] float64 in [0, 1]. `scores.recall.nanmean()` is the balanced accuracy, and
    `scores.f1.nanmean()` the macro F1."""

    recall: Tensor
    """Accuracy of the class: of its images, how many were predicted as it; NaN if there are none."""
    precision: Tensor
    """Of the images that were predicted as the class, how many are of it; NaN if there are none."""
    f1: Tensor
    """Harmonic mean of the two; NaN if there are neither such images."""


def class_scores(confusion: Tensor) -> ClassScores:
    """Recall, precision and F1 = 2 TP / (2 TP + FP + FN) of each class.

    Args:
        confusion: [K, K] int64, how many images of class i (row) were predicted as class j (column).
    """
    confusion = confusion.to(torch.float64)
    hits, images, predictions = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
    return ClassScores(recall=hits / images, precision=hits / predictions, f1=2 * hits / (images + predictions))


class Calibration(NamedTuple):
    """Predictions by their confidence, in M bins of equal width: bin m holds those in ((m - 1) / M, m / M]."""

    counts: Tensor
    """[M] int64, predictions in each bin."""
    confidence: Tensor
    """[M] float64, mean confidence; NaN for an empty bin."""
    accuracy: Tensor
    """[M] float64, share of right predictions; NaN for an empty bin."""

    @property
    def error(self) -> float:
        """Expected calibration error, in [0, 1]: sum_m counts_m / N |accuracy_m - confidence_m|."""
        gaps = (self.accuracy - self.confidence).abs().where(self.counts > 0, 0)
        return ((self.counts * gaps).sum() / self.counts.sum()).item()


def calibration(logits: Tensor, labels: Tensor, *, num_bins: int = 15) -> Calibration:
    """How often predictions are right, beside how sure they are (Guo et al., arXiv 1706.04599, equations 1 to 3).

    The confidence in a prediction is the largest of the probabilities softmax(logits).

    Args:
        logits: [B, K].
        labels: [B] int64 in [0, K).
        num_bins: M.
    """
    confidence = logits.to(torch.float32).softmax(dim=1).amax(dim=1).to(torch.float64)
    right = in_top_k(logits, labels, 1).to(torch.float64)
    edges = torch.arange(1, num_bins, dtype=torch.float64, device=logits.device) / num_bins  # between the bins
    bins = torch.bucketize(confidence, edges)
    counts = torch.bincount(bins, minlength=num_bins)
    sums = (torch.bincount(bins, weights=values, minlength=num_bins) for values in (confidence, right))
    return Calibration(counts, *(total / counts for total in sums))
