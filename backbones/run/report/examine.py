"""What a trained model does with the images: its predictions on the held-out ones, and the augmented batch it saw.

C channels, H and W height and width of an image.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

import backbones.random as random
from backbones.component import Use
from backbones.data import Dataset, Source
from backbones.run.analysis.augment_sheet import make_sheet
from backbones.run.analysis.model_evaluation import Evaluation, Mistake, check_fits, evaluate_model, load_predictor
from backbones.run.analysis.pictures import Tile
from backbones.run.checkpoint import find_checkpoint, read_checkpoint
from backbones.run.report.runs import Run

MISTAKES, SAMPLES = 24, 16
"""Wrong predictions, and augmented images, that are shown."""


class Examined(NamedTuple):
    """The last checkpoint of a run, and its first batch."""

    step: int
    """Of the checkpoint."""
    class_names: tuple[str, ...]
    evaluation: Evaluation
    mistakes: list[Tile]
    """Of the held-out images those with the highest probability on a wrong class."""
    augmented: list[list[Tile]]
    """Training images of the first step, each before and after augmentation."""


def examine(run: Run, read: Callable[[Use], Dataset], device: torch.device) -> Examined:
    """Evaluate the last checkpoint of a run, and look at the images of its first step.

    Args:
        run: a run with a checkpoint.
        read: gives the data set of a component, on the CPU.
        device: where to evaluate.

    Raises:
        InputError: there is no checkpoint, the data set cannot be read, or they do not fit.
    """
    experiment = run.experiment
    checkpoint = read_checkpoint(find_checkpoint(run.folder))
    info, dataset = checkpoint.manifest.info, read(experiment.data)
    check_fits(dataset, info, experiment.data.name)
    evaluation = evaluate_model(
        load_predictor(checkpoint, experiment, device),
        dataset.test,
        batch_size=experiment.eval_batch_size,
        device=device,
        loss=experiment.make_loss(),
        title=run.folder.name,
    )
    sheet = make_sheet(experiment, dataset, experiment.augment, samples=SAMPLES, variants=1, step=0)
    mistakes = _show(evaluation.worst_mistakes(MISTAKES), dataset.test)
    return Examined(checkpoint.manifest.step, info.class_names, evaluation, mistakes, sheet.rows)


def _show(mistakes: list[Mistake], source: Source) -> list[Tile]:
    if not mistakes:
        return []
    names, index = source.info.class_names, torch.tensor([mistake.index for mistake in mistakes])
    images = source.read(index, random.fold_in(random.key(0), index))
    return [
        Tile(image, [f"true {names[k]}", f"predicted {names[other]}", f"{probability:.1%}, #{i}"])
        for image, (i, k, other, probability) in zip(images, mistakes, strict=True)
    ]
