"""Evaluation of a model on labelled images: metrics, confusion matrix, and the files that show them.

N images, C channels, H and W height and width, K classes.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import backbones.machine as machine
import backbones.tree as tree
from backbones.augment import make_normalize
from backbones.data import Source, eval_batches
from backbones.experiment import Experiment
from backbones.losses import cross_entropy
from backbones.models import with_autocast
from backbones.run.checkpoint import Checkpoint, weights_of
from backbones.run.files import atomic_write, to_json

Predict = Callable[[Tensor], Tensor]
"""images [N, C, H, W] uint8 -> logits [N, K]."""


class Report(NamedTuple):
    """Metrics of a model on N labelled images."""

    loss: float
    """Cross-entropy in nats, without label smoothing."""
    top1: float
    top5: float
    confusion: Tensor
    """[K, K] int64: how many images of class i (row) were predicted as class j (column)."""

    @property
    def class_accuracy(self) -> Tensor:
        """[K] float64 in [0, 1]; NaN for a class without images."""
        return self.confusion.diagonal() / self.confusion.sum(dim=1).to(torch.float64)


def load_predictor(checkpoint: Checkpoint, experiment: Experiment, device: torch.device) -> Predict:
    """The model of a checkpoint, with averaged weights if the run keeps them, as one function; no data set is read."""
    info = checkpoint.manifest.info
    precision = machine.choose_precision(experiment.precision, device)
    model = with_autocast(experiment.make_model(info), getattr(torch, precision))
    params, model_state = tree.map(lambda leaf: leaf.to(device), weights_of(checkpoint.arrays))
    normalize = make_normalize(info.mean, info.std, device)

    @torch.no_grad()
    def predict(images: Tensor) -> Tensor:
        return model.apply(params, model_state, normalize(images.to(device)), train=False)[0]

    return predict


def make_report(predict: Predict, source: Source, *, batch_size: int, device: torch.device) -> Report:
    """Loss, accuracies and confusion over all images of a source."""
    batches = eval_batches(source, batch_size=batch_size, device=device)
    num_batches = -(-source.size // batch_size)
    rows = [
        (predict(batch.images)[batch.weight > 0], batch.labels[batch.weight > 0])
        for batch in tqdm(batches, total=num_batches, disable=None)
    ]
    logits, labels = (torch.cat(parts).cpu() for parts in zip(*rows, strict=True))
    # of equal logits the lower class comes first, as in training
    guesses = logits.sort(dim=1, descending=True, stable=True).indices  # [N, K]
    hits = guesses == labels[:, None]
    num_classes = source.info.num_classes
    confusion = torch.bincount(labels * num_classes + guesses[:, 0], minlength=num_classes**2)
    return Report(
        loss=cross_entropy(logits, labels).to(torch.float64).mean().item(),
        top1=hits[:, 0].to(torch.float64).mean().item(),
        top5=hits[:, :5].any(dim=1).to(torch.float64).mean().item(),
        confusion=confusion.reshape(num_classes, num_classes),
    )


def plot_confusion(report: Report, class_names: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix, rows scaled to 1, with the counts in its cells where they are large enough."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    counts, size = report.confusion, max(4.0, 0.45 * len(class_names))
    figure = Figure(figsize=(min(size, 20) + 1.5, min(size, 20)), layout="constrained")
    axes = figure.subplots()
    shares = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).tolist()
    figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the true class")
    ticks = range(len(class_names))
    axes.set(xlabel="predicted class", ylabel="true class", title=f"top-1 {report.top1:.2%}")
    axes.set_xticks(ticks, class_names, rotation=90)
    axes.set_yticks(ticks, class_names)
    if len(class_names) <= 30:
        for i, j in counts.nonzero().tolist():
            color = "white" if shares[i][j] > 0.5 else "black"
            axes.text(j, i, str(counts[i, j].item()), ha="center", va="center", color=color, fontsize=8)
    figure.savefig(path, dpi=120)


def write_report(folder: Path, report: Report, class_names: Sequence[str], about: dict[str, str]) -> None:
    """Write `evaluation.json`, headed by `about`, and `confusion.png`; `folder` is created if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        **about,
        **report._asdict(),
        "confusion": report.confusion.tolist(),
        "classes": list(class_names),
        "class_accuracy": [None if math.isnan(value) else value for value in report.class_accuracy.tolist()],
    }
    atomic_write(folder / "evaluation.json", to_json(values) + "\n")
    plot_confusion(report, class_names, folder / "confusion.png")
