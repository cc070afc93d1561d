"""What a checkpoint can do: `python -m backbones.evaluate RUN`, or `RUN IMAGE ...` to classify image files.

N images, C channels, H and W height and width, K classes.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm
from tyro.conf import Positional

import backbones.distributed as distributed
from backbones.augment import normalize
from backbones.checkpoint import Checkpoint, find_checkpoint, read_checkpoint, weights_of
from backbones.command_line import one_message
from backbones.data import Dataset, Split, channel_statistics, eval_batches
from backbones.datasets import DATASETS
from backbones.errors import InputError, check_known
from backbones.files import to_json, write_whole
from backbones.loop import make_statistics
from backbones.losses import cross_entropy
from backbones.models import MODELS, in_precision
from backbones.train_step import make_model_state_step

Predict = Callable[[Tensor], Tensor]
"""images [N, C, H, W] uint8 -> logits [N, K]."""


class Evaluation(NamedTuple):
    """How a model does on N labelled images."""

    loss: float
    """Cross-entropy in nats, without label smoothing."""
    top1: float
    top5: float
    confusion: Tensor
    """[K, K] int64: how many images of class i (row) were taken for class j (column)."""

    @property
    def class_accuracy(self) -> Tensor:
        """[K] float64 in [0, 1]; NaN for a class without images."""
        return self.confusion.diagonal() / self.confusion.sum(dim=1).to(torch.float64)


def load(checkpoint: Checkpoint, device: torch.device) -> tuple[Predict, Dataset]:
    """The model of a checkpoint as one function, and the data set that it was trained on.

    Where the run keeps an average of the parameters, it is the average, with BatchNorm statistics of its own.

    Raises:
        InputError: the model or the data set is not one of ours, or not to be had.
    """
    config, average = checkpoint.manifest.experiment, checkpoint.manifest.average
    dataset = _make("data", DATASETS, config["data"])
    image_shape = tuple(dataset.train.images.shape[1:])
    model = _make("model", MODELS, config["model"], image_shape, len(dataset.class_names))
    model = in_precision(model, getattr(torch, config["precision"]))
    weights = {name: leaf.to(device) for name, leaf in weights_of(checkpoint).items()}
    params = {name: weights.pop(name) for name, _ in model.skeleton.named_parameters()}
    dataset = dataset.to(device)
    mean, std = channel_statistics(dataset.train)
    with torch.no_grad():
        model_state = weights
        if average is not None:
            step = make_model_state_step(model, mean=mean, std=std)
            statistics = make_statistics(step, dataset.train, batch_size=config["batch_size"])
            model_state = statistics(params, model_state)

    @torch.no_grad()
    def predict(images: Tensor) -> Tensor:
        return model.apply(params, model_state, normalize(images, mean, std), train=False)[0]

    return predict, dataset


def _make(kind: str, functions: dict[str, Callable[..., Any]], options: dict[str, Any], *args: Any) -> Any:
    """What a component of `config.json` stands for."""
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return functions[check_known(kind, options.pop("name"), functions)](*args, **options)


def evaluate(predict: Predict, split: Split, *, num_classes: int, batch_size: int) -> Evaluation:
    """Loss, accuracies and confusion over all images of a split.

    Args:
        predict: from `load`.
        split: images and labels.
        num_classes: K.
        batch_size: images a batch.
    """
    batches = -(-len(split.labels) // batch_size)
    rows = []
    for batch in tqdm(eval_batches(split, batch_size=batch_size), total=batches, disable=not sys.stderr.isatty()):
        rows.append(predict(batch.images)[batch.labels >= 0])
    logits, labels = torch.cat(rows), split.labels
    # of equal logits the lower class comes first, as in training
    guesses = logits.sort(dim=1, descending=True, stable=True).indices  # [N, K]
    hits = guesses == labels[:, None]
    confusion = torch.bincount(labels * num_classes + guesses[:, 0], minlength=num_classes**2)
    return Evaluation(
        loss=cross_entropy(logits, labels).to(torch.float64).mean().item(),
        top1=hits[:, 0].to(torch.float64).mean().item(),
        top5=hits[:, :5].any(dim=1).to(torch.float64).mean().item(),
        confusion=confusion.reshape(num_classes, num_classes).cpu(),
    )


def plot_confusion(evaluation: Evaluation, class_names: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix, rows scaled to 1, with the counts written into it where they can be read."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    counts, size = evaluation.confusion, max(4.0, 0.45 * len(class_names))
    figure = Figure(figsize=(min(size, 20) + 1.5, min(size, 20)), layout="constrained")
    axes = figure.subplots()
    shares = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).tolist()
    figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the class")
    places = range(len(class_names))
    axes.set(xlabel="taken for", ylabel="class", title=f"top-1 {evaluation.top1:.2%}", xticks=places, yticks=places)
    axes.set_xticklabels(class_names, rotation=90)
    axes.set_yticklabels(class_names)
    if len(class_names) <= 30:
        for i, j in counts.nonzero().tolist():
            color = "white" if shares[i][j] > 0.5 else "black"
            axes.text(j, i, counts[i, j].item(), ha="center", va="center", color=color, fontsize=8)
    figure.savefig(path, dpi=120)


def write_report(folder: Path, evaluation: Evaluation, class_names: Sequence[str], about: dict[str, str]) -> None:
    """Write `evaluation.json` and `confusion.png`, and say so.

    Args:
        folder: where to; made if need be.
        evaluation: what to write.
        class_names: K names.
        about: what was evaluated, and on what.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        **about,
        "loss": evaluation.loss,
        "top1": evaluation.top1,
        "top5": evaluation.top5,
        "classes": list(class_names),
        "class_accuracy": [None if value != value else value for value in evaluation.class_accuracy.tolist()],
        "confusion": evaluation.confusion.tolist(),
    }
    write_whole(folder / "evaluation.json", to_json(report) + "\n")
    plot_confusion(evaluation, class_names, folder / "confusion.png")
    print(f"\nsee {folder}/evaluation.json and confusion.png")


def read_images(paths: Sequence[Path], image_shape: tuple[int, int, int], *, resize: bool) -> Tensor:
    """Image files as the model wants them, [N, C, H, W] uint8.

    Args:
        paths: files of any format that Pillow knows.
        image_shape: C (1 or 3: grey, or red, green and blue), H and W.
        resize: scale images of another size to H x W, instead of refusing them.

    Raises:
        InputError: a file is absent, no image, or of another size.
    """
    channels, height, width = image_shape
    images = []
    for path in paths:
        try:
            image = Image.open(path).convert("L" if channels == 1 else "RGB")
        except (UnidentifiedImageError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no image, or cut off"
            raise InputError(f"{path} cannot be read: {reason}") from error
        if image.size != (width, height):
            if not resize:
                got = "x".join(str(size) for size in image.size)
                raise InputError(
                    f"{path} is of {got} pixels and the model takes {width}x{height}; scale it by --resize"
                )
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        images.append(torch.from_numpy(np.array(image)).reshape(height, width, channels).permute(2, 0, 1))
    return torch.stack(images)


def main(
    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")],
    images: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[IMAGE ...]")] = (),
    /,
    *,
    data: str | None = None,
    split: Literal["test", "train"] = "test",
    checkpoint: Annotated[str, tyro.conf.arg(metavar="latest|best|STEP")] = "latest",
    batch_size: int = 500,
    resize: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    out: Path | None = None,
) -> None:
    """Evaluate a checkpoint: top-1, top-5, loss, accuracy of each class and confusion; or classify image files.

    Args:
        run: a run folder, or one checkpoint in it.
        images: image files to classify, instead of the data set.
        data: name of another data set of the same shape and number of classes; None for that of the run.
        split: which images of it.
        checkpoint: which checkpoint of the run.
        batch_size: images a batch.
        resize: scale image files of another size to that of the model.
        device: where to compute; auto is the GPU where there is one.
        out: folder for evaluation.json and confusion.png; None for the run folder.

    Raises:
        InputError: what is wanted is not there, or does not fit.
    """
    if batch_size < 1:
        raise InputError(f"--batch-size is {batch_size}; it must be 1 or more")
    path = find_checkpoint(run, checkpoint)
    whole, torch_device = read_checkpoint(path), distributed.init(device)
    predict, dataset = load(whole, torch_device)
    if images:
        _classify(predict, dataset, images, resize=resize)
        return
    if data is not None:
        dataset = _other_dataset(data, dataset, whole.manifest.experiment["data"]).to(torch_device)
    samples = dataset.train if split == "train" else dataset.test
    evaluation = evaluate(predict, samples, num_classes=len(dataset.class_names), batch_size=batch_size)
    data = data or whole.manifest.experiment["data"]["name"]
    print(f"{path} on the {len(samples.labels)} images of {data} {split}:")
    print(f"top-1 {evaluation.top1:.2%}  top-5 {evaluation.top5:.2%}  loss {evaluation.loss:.4f}\n")
    _print_classes(evaluation, dataset.class_names)
    about = {"checkpoint": str(path), "data": data, "split": split}
    write_report(out or path.parent.parent, evaluation, dataset.class_names, about)


def _other_dataset(name: str, trained_on: Dataset, options: dict[str, Any]) -> Dataset:
    function = DATASETS[check_known("data", name, DATASETS)]
    shared = {key: value for key, value in options.items() if key in inspect.signature(function).parameters}
    dataset = function(**shared)  # its root, if both have one
    for what, got, wanted in (
        ("images", tuple(dataset.test.images.shape[1:]), tuple(trained_on.test.images.shape[1:])),
        ("classes", len(dataset.class_names), len(trained_on.class_names)),
    ):
        if got != wanted:
            raise InputError(f"{what} of {name}: {got}; the model was trained for {wanted}: name another --data")
    return dataset


def _classify(predict: Predict, dataset: Dataset, paths: Sequence[Path], *, resize: bool) -> None:
    images = read_images(paths, tuple(dataset.test.images.shape[1:]), resize=resize).to(dataset.test.images.device)
    probabilities = torch.softmax(predict(images).to(torch.float32), dim=1)
    top = probabilities.topk(min(5, len(dataset.class_names)), dim=1)
    width = max(len(str(path)) for path in paths)
    for path, values, classes in zip(paths, top.values.tolist(), top.indices.tolist(), strict=True):
        guesses = [f"{dataset.class_names[k]} {value:.1%}" for value, k in zip(values, classes, strict=True)]
        print(f"{path!s:{width}s}  {'  '.join(guesses)}")


def _print_classes(evaluation: Evaluation, class_names: Sequence[str]) -> None:
    width = max(len("class"), *(len(name) for name in class_names))
    print(f"{'class':{width}s}  images  accuracy  most often taken for")
    confusion = evaluation.confusion
    mistakes = confusion - torch.diag(confusion.diagonal())
    for k, name in enumerate(class_names):
        wrong, other = mistakes[k].max(dim=0)
        taken_for = f"{class_names[other]} ({wrong})" if wrong else ""
        print(f"{name:{width}s}  {confusion[k].sum():6d}  {evaluation.class_accuracy[k]:8.2%}  {taken_for}".rstrip())


if __name__ == "__main__":
    with one_message():
        tyro.cli(main, prog="python -m backbones.evaluate")
