"""From a checkpoint to a file for other programs, which is read again."""

import dataclasses
import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import backbones.random as random
import backbones.tree as tree
from backbones.data import DataInfo
from backbones.data.source import read_some
from backbones.errors import InputError, check_known, first_line
from backbones.experiment import VERSION, Experiment, make_dataset
from backbones.run.analysis.model_evaluation import check_fits
from backbones.run.analysis.trained_model import load_model
from backbones.run.checkpoint import Checkpoint
from backbones.run.export.formats import FORMATS, Content, Format, Lines
from backbones.run.export.fresh_process import compute_logits, read_tensors
from backbones.run.files import atomic_path
from backbones.types import CPU

TOLERANCE = 1e-4
"""Largest difference of a logit; where logits are above 10, that of the largest one over 10."""


class Exported(NamedTuple):
    """A file that was written, and read again in another process."""

    lines: Lines
    """How to read it."""
    difference: float = 0.0
    """Largest difference of a logit from the checkpoint's; 0 for a file of weights, which are equal."""
    num_images: int = 0
    """How many images were compared; 0 for a file of weights."""
    num_equal: int = 0
    """How many of them have the same class."""


def export(
    checkpoint: Checkpoint,
    experiment: Experiment,
    read_images: Callable[[], Tensor],
    out: Path,
    *,
    format: str,
    fold: bool = False,
    license: str | None = None,
) -> Exported:
    """Write the weights of a checkpoint (the average where there is one) into a new file, and read it again.

    Args:
        checkpoint: what to export.
        experiment: its experiment.
        read_images: gives images [N, C, H, W] uint8 on the CPU, with which logits are compared; called for these alone.
        out: the file; nothing is there after an error.
        format: one of `FORMATS`.
        fold: whether to fold BatchNorm into the convolution before it.
        license: for the metadata.

    Raises:
        InputError: the file exists, the model cannot be exported so, or what is read differs from the checkpoint.
    """
    how = FORMATS[check_known("format", format, FORMATS)]
    _check(format, how, out, fold)
    trained = load_model(checkpoint, dataclasses.replace(experiment, precision="float32"), CPU)
    metadata = {
        "experiment": experiment.name,
        "model": experiment.model.label,
        "step": checkpoint.manifest.step,
        **trained.info._asdict(),
        "license": license,
        "version": f"backbones {_version()}",
    }
    if how.kind != "weights":
        images = read_images()
        logits = trained.logits(images)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out, new=True) as temporary:
        lines = _write(format, temporary, Content(experiment.model, trained, metadata, fold))
        if how.kind != "weights":
            return _compare(compute_logits(temporary, lines, images), logits, lines)
        if tree.sha256(read_tensors(temporary, lines)) != tree.sha256(trained.leaves):
            raise InputError("what was read from the exported file are not the weights of the checkpoint")
        return Exported(lines)


def read_test_images(experiment: Experiment, info: DataInfo, most: int) -> Tensor:
    """At most `most` held-out images of the data of an experiment, at equal distances, [N, C, H, W] uint8.

    Where the data cannot be read, or no longer fits the model, they are random pixels, and a note says so.
    """
    try:
        dataset = make_dataset(experiment.data, CPU)
        check_fits(dataset, info, experiment.data.name)
    except InputError as error:
        print(f"note: logits are compared on random pixels; {error}")
        return torch.randint(256, (most, *info.image_shape), generator=random.generator(0), dtype=torch.uint8)
    return read_some(dataset.test.read, dataset.test.size, most)


def _version() -> str:
    """Of this package where it is installed, else of the format of its experiments."""
    try:
        return importlib.metadata.version("backbones")
    except importlib.metadata.PackageNotFoundError:
        return VERSION


def _check(format: str, how: Format, out: Path, fold: bool) -> None:
    """Raise InputError for what can be seen before anything is computed."""
    suffix = Path(how.file_name).suffix
    if out.suffix != suffix:
        raise InputError(f"--out {out} does not end in {suffix}, as a file of --format {format} does")
    if out.exists():
        raise InputError(f"{out} exists already; choose another --out")
    if fold and how.kind != "program":
        programs = ", ".join(name for name, each in FORMATS.items() if each.kind == "program")
        raise InputError(f"--fold changes the layers, and --format {format} holds weights alone; it is for {programs}")
    missing = [name for name in how.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--format {format} needs {', '.join(missing)}; install it by pip install -e '.[export]'")


def _write(format: str, path: Path, content: Content) -> Lines:
    try:
        return FORMATS[format].write(path, content)
    except (InputError, OSError):
        raise
    except Exception as error:  # of a module that cannot be traced, or that has an operator which the format lacks
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{content.component.name} cannot be exported as {format}: {reason}") from error


def _compare(got: Tensor, wanted: Tensor, lines: Lines) -> Exported:
    difference, largest = (got - wanted).abs().max().item(), wanted.abs().max().item()
    if not difference <= TOLERANCE * max(1, largest / 10):
        raise InputError(
            f"what was exported does not compute what the checkpoint does: logits of {len(wanted)} images differ by "
            f"{difference:.2g}, where {TOLERANCE} would be rounding; nothing was written"
        )
    return Exported(lines, difference, len(wanted), int((got.argmax(dim=1) == wanted.argmax(dim=1)).sum()))
