"""Evaluation of a model on labelled images: metrics, confusion matrix, calibration, and the files that show them.

N images, C channels, H and W height and width, K classes.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import backbones.distributed as distributed
from backbones.data import DataInfo, Dataset, Source, eval_batches
from backbones.errors import InputError, shorten
from backbones.experiment import Experiment
from backbones.losses import Loss, cross_entropy
from backbones.metrics import Calibration, ClassScores, calibration, class_scores, in_top_k
from backbones.run.analysis.pictures import shorten_start
from backbones.run.analysis.trained_model import load_model
from backbones.run.checkpoint import Checkpoint
from backbones.run.files import atomic_write, json_text

Predict = Callable[[Tensor], Tensor]
"""images [N, C, H, W], uint8 or floating in [0, 255] -> logits [N, K]."""

MOST_COUNTED = 30
"""The most classes for which a confusion matrix shows counts."""

MOST_LETTERS = 24
"""Of the name of a class beside a confusion matrix."""


class Mistake(NamedTuple):
    """An image that was predicted as another class than its own."""

    index: int  # type: ignore[assignment]  # tuple.index is not needed
    """Of the image in its split."""
    label: int
    predicted: int
    probability: float
    """Of the predicted class, in [0, 1]."""


class Evaluation(NamedTuple):
    """Metrics of a model on N labelled images."""

    loss: float
    """In nats, without label smoothing and class weights."""
    top1: float
    top5: float
    confusion: Tensor
    """[K, K] int64: how many images of class i (row) were predicted as class j (column)."""
    calibration: Calibration
    labels: Tensor
    """[N] int64."""
    predicted: Tensor
    """[N] int64, the predicted classes."""
    confidence: Tensor
    """[N] float32, their probabilities."""

    @property
    def scores(self) -> ClassScores:
        """Recall, precision and F1 of each class."""
        return class_scores(self.confusion)

    @property
    def summary(self) -> dict[str, float]:
        """The metrics that are one number: in nats the loss, in [0, 1] all others."""
        return {
            "loss": self.loss,
            "top1": self.top1,
            "top5": self.top5,
            "balanced_accuracy": self.scores.recall.nanmean().item(),
            "macro_f1": self.scores.f1.nanmean().item(),
            "calibration_error": self.calibration.error,
        }

    @property
    def confused_with(self) -> list[tuple[int, int] | None]:
        """For each class the other one that its images are most often predicted as, and how many; None if no other."""
        counts, others = (self.confusion - torch.diag(self.confusion.diagonal())).max(dim=1)
        pairs = zip(others.tolist(), counts.tolist(), strict=True)
        return [(other, count) if count else None for other, count in pairs]

    def worst_mistakes(self, most: int) -> list[Mistake]:
        """The wrong predictions, those of the highest probability first, and no more than `most` of them."""
        wrong = (self.predicted != self.labels).nonzero()[:, 0]
        worst = wrong[self.confidence[wrong].nan_to_num(-1.0).argsort(descending=True, stable=True)][:most]
        columns = worst, self.labels[worst], self.predicted[worst], self.confidence[worst]
        return [Mistake(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


class ClassRow(NamedTuple):
    """Scores of a class; None where they are not defined."""

    name: str
    images: int
    recall: float | None
    precision: float | None
    f1: float | None
    confused: str
    """The other class that its images are most often predicted as, and how many."""


def class_rows(evaluation: Evaluation, class_names: Sequence[str]) -> list[ClassRow]:
    """The scores of each class."""
    images = evaluation.confusion.sum(dim=1).tolist()
    scores = [null_for_nan(each) for each in evaluation.scores]
    confused = [f"{class_names[other[0]]} ({other[1]})" if other else "" for other in evaluation.confused_with]
    return [ClassRow(*values) for values in zip(class_names, images, *scores, confused, strict=True)]


def load_predictor(checkpoint: Checkpoint, experiment: Experiment, device: torch.device) -> Predict:
    """The model of a checkpoint, with averaged weights if the run keeps them, as one function; no data set is read."""
    return torch.no_grad()(partial(load_model(checkpoint, experiment, device).logits, tta=experiment.tta))


def check_fits(dataset: Dataset, info: DataInfo, name: str) -> None:
    """Check a data set called `name` against the `info` of the images that a model was trained on.

    Raises:
        InputError: the images have another shape, there is another number of classes, or a class has another number.
    """
    got, wanted = (f"images of {each.image_shape} and {each.num_classes} classes" for each in (dataset.info, info))
    if got != wanted:
        raise InputError(f"{name} has {got}; the model was trained for {wanted}: evaluate it on other data")
    pairs = zip(dataset.info.class_names, info.class_names, strict=True)
    different = [(theirs, ours) for theirs, ours in pairs if theirs != ours]
    if not different:
        return
    theirs, ours = map(shorten, zip(*different, strict=True))
    if moved := {each for each, _ in different} & {*info.class_names}:
        raise InputError(
            f"{name} has the classes in another order than the model, such as {min(moved)}: {theirs} are {ours} there"
        )
    distributed.warn0(f"the classes of {name} are called {theirs}; those of the model {ours}")


def evaluate_model(
    predict: Predict,
    source: Source,
    *,
    batch_size: int,
    device: torch.device,
    loss: Loss = cross_entropy,
    title: str | None = None,
) -> Evaluation:
    """Loss, accuracies, confusion and calibration over all images of a source; `title` is that of the progress bar."""
    batches = eval_batches(source, batch_size=batch_size, device=device)
    num_batches = -(-source.size // batch_size)
    rows = [
        (predict(batch.images)[batch.weight > 0], batch.labels[batch.weight > 0])
        for batch in tqdm(batches, total=num_batches, desc=title, disable=None)
    ]
    logits, labels = (torch.cat(parts).cpu() for parts in zip(*rows, strict=True))
    predicted, num_classes = logits.argmax(dim=1), source.info.num_classes
    is_lucky = logits.isnan().any(dim=1) & (predicted == labels)  # NaN is wrong, as in training
    predicted = torch.where(is_lucky, (labels + 1) % num_classes, predicted)
    confusion = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return Evaluation(
        loss=loss(logits, labels, targets=None, label_smoothing=0.0).to(torch.float64).mean().item(),
        top1=in_top_k(logits, labels, 1).to(torch.float64).mean().item(),
        top5=in_top_k(logits, labels, 5).to(torch.float64).mean().item(),
        confusion=confusion.reshape(num_classes, num_classes),
        calibration=calibration(logits, labels),
        labels=labels,
        predicted=predicted,
        confidence=logits.to(torch.float32).softmax(dim=1).amax(dim=1),
    )


def plot_confusion(evaluation: Evaluation, class_names: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix, rows scaled to 1, with the counts in its cells where they are large enough."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    counts, size = evaluation.confusion, max(4.0, 0.45 * len(class_names))
    figure = Figure(figsize=(min(size, 20) + 1.5, min(size, 20)), layout="constrained")
    axes = figure.subplots()
    shares = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the true class")
    ticks, names = range(len(class_names)), [shorten_start(name, MOST_LETTERS) for name in class_names]
    axes.set(xlabel="predicted class", ylabel="true class", title=f"top-1 {evaluation.top1:.2%}")
    axes.set_xticks(ticks, names, rotation=90, parse_math=False)
    axes.set_yticks(ticks, names, parse_math=False)
    if len(class_names) <= MOST_COUNTED:
        for i, j in counts.nonzero().tolist():
            color = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, str(counts[i, j].item()), ha="center", va="center", color=color, fontsize=8)
    figure.savefig(path, dpi=120)


def plot_calibration(evaluation: Evaluation, path: Path) -> None:
    """Draw the reliability diagram: accuracy beside confidence in each bin, and below it how many images are there."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    counts, confidence, accuracy = evaluation.calibration
    width, filled = 1 / len(counts), counts > 0
    centers = ((torch.arange(len(counts)) + 0.5) * width)[filled].tolist()
    right, gap = accuracy[filled].tolist(), (confidence - accuracy)[filled].tolist()
    figure = Figure(figsize=(5, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    upper.bar(centers, right, width, color="lightsteelblue", edgecolor="white", label="accuracy")
    style = {"facecolor": "none", "edgecolor": "tab:red", "hatch": "///"}
    upper.bar(centers, gap, 0.8 * width, bottom=right, label="gap to confidence", **style)
    upper.plot([0, 1], [0, 1], "--", color="gray", lw=1, label="no gap")
    upper.set(ylabel="accuracy", ylim=(0, 1), title=f"expected calibration error {evaluation.calibration.error:.2%}")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    lower.bar(centers, (counts / counts.sum())[filled].tolist(), width, color="lightgray", edgecolor="white")
    lower.set(xlabel="confidence", ylabel="share of images", xlim=(0, 1))
    figure.savefig(path, dpi=120)


def check_writable(folder: Path) -> None:
    """Create a folder if it does not exist.

    Raises:
        InputError: files cannot be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}; name another folder by --out") from error


def write_evaluation(folder: Path, evaluation: Evaluation, class_names: Sequence[str], about: dict[str, str]) -> None:
    """Write `evaluation.json`, headed by `about`, `confusion.png` and `calibration.png`, into a folder."""
    values = {
        **about,
        **evaluation.summary,
        "confusion": evaluation.confusion.tolist(),
        "classes": list(class_names),
        "class_accuracy": null_for_nan(evaluation.scores.recall),
        "class_precision": null_for_nan(evaluation.scores.precision),
        "class_f1": null_for_nan(evaluation.scores.f1),
        "calibration": {name: null_for_nan(value) for name, value in evaluation.calibration._asdict().items()},
    }
    atomic_write(folder / "evaluation.json", json_text(values) + "\n")
    plot_confusion(evaluation, class_names, folder / "confusion.png")
    plot_calibration(evaluation, folder / "calibration.png")


def null_for_nan(values: Tensor) -> list[float | None]:
    """A vector as plain data; NaN is None."""
    return [None if math.isnan(value) else value for value in values.tolist()]
