"""`backbones augment-preview RUN --out a.png`: a sheet of training images before and after their augmentation.

S samples, V variants of each, C channels, H and W height and width of an image, K classes.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import backbones.random as random
from backbones.commands.options import FUNCTIONS, find_components, find_object, read_options
from backbones.component import Use
from backbones.data import make_batches
from backbones.data.source import CPU
from backbones.errors import Count, InputError, Range, check_values
from backbones.experiment import Experiment
from backbones.run.pictures import Tile, caption, draw_tiles
from backbones.run.run_dir import CONFIG, read_config, read_experiment

Step = Annotated[int, Range("[0, inf)")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The command line."""

    augment: Use
    out: Path = Path("augment.png")
    """Image file to write."""
    samples: Count = 8
    """Training images, one a line: the first of the batch of the step."""
    variants: Count = 8
    """How often each is augmented: at the step and at those after it, each time in a new epoch."""
    step: Step = 0
    """Step of the run."""

    def __post_init__(self) -> None:
        annotations = {"samples": Count, "variants": Count, "step": Step}
        check_values(annotations, {name: getattr(self, name) for name in annotations}, prefix="--")


class Sheet(NamedTuple):
    """What is drawn."""

    original: Tensor
    """[S, C, H, W] uint8."""
    labels: Tensor
    """[S] int64."""
    variants: Tensor
    """[S, V, C, H, W], uint8 or float32 in [0, 255]."""
    targets: Tensor
    """[S, V, K] float32, class probabilities."""
    class_names: Sequence[str]
    """K names."""


def main(args: list[str]) -> None:
    """Run a command line.

    Raises:
        InputError: there is no such run, experiment or augmentation, or the file cannot be written.
    """
    names = f"--augment NAME, for another than its own: {', '.join(FUNCTIONS['augment'])}"
    if not args or args[0] in ("-h", "--help"):
        print("usage: backbones augment-preview RUN [--augment NAME] [--out FILE] [--help]\n")
        print(f"RUN: a run folder, or an experiment as module:name\n{names}")
        return
    experiment = read_run(args[0])
    named, options = find_components(args[1:], ["augment"])
    function = named.get("augment", experiment.augment.function)
    augment = experiment.augment if function == experiment.augment.function else Use(function)
    description = f"Draw training images of {args[0]} before and after augmentation. {names}"
    command = read_options(Command(augment=augment), options, prog="backbones augment-preview", description=description)
    sheet = make_sheet(experiment, command.augment, command.samples, command.variants, command.step)
    draw(sheet, command.out, title=f"{experiment.name} from step {command.step}: {describe(command.augment)}")
    print(f"drew {len(sheet.labels)} images of {experiment.data.name} under {command.augment.name} into {command.out}")


def describe(augment: Use) -> str:
    """Name and fields, in short."""
    numbers = {name: value if isinstance(value, tuple) else (value,) for name, value in augment.values.items()}
    fields = [
        f"{name} {'-'.join(f'{n:.3g}' if isinstance(n, float) else str(n) for n in value)}"
        for name, value in numbers.items()
    ]
    return f"{augment.name} ({', '.join(fields)})" if fields else augment.name


def read_run(name: str) -> Experiment:
    """The experiment of a run folder, or at `module:name`.

    Raises:
        InputError: there is none.
    """
    config = Path(name) / CONFIG
    if config.exists():
        return read_experiment(config, read_config(config))
    found = find_object("experiment", name, {}) if ":" in name else None
    if not isinstance(found, Experiment):
        raise InputError(
            f"{name} is no run folder and no experiment; give one, as runs/mine or experiments.digits:digits_resnet18"
        )
    return found


def make_sheet(experiment: Experiment, augment: Use, samples: int, variants: int, step: int) -> Sheet:
    """The first samples of the batch of a step, and what one process would make of them there.

    Raises:
        InputError: the augmentation does not suit the batch.
    """
    dataset = experiment.data.make(device=CPU)
    num_classes = dataset.info.num_classes
    function = augment.make(num_classes=num_classes, device=CPU)
    batch = make_batches(dataset.train, seed=experiment.seed, batch_size=experiment.batch_size, device=CPU)(step)
    key, images, targets = random.key(experiment.seed), [], []
    for i in range(variants):
        augmented = function(random.sample_keys(key, step + i, batch.index), batch._replace(epoch=batch.epoch + i))
        one_hot = F.one_hot(augmented.labels, num_classes).to(torch.float32)
        images.append(augmented.images[:samples])
        targets.append((one_hot if augmented.targets is None else augmented.targets)[:samples])
    return Sheet(
        batch.images[:samples],
        batch.labels[:samples],
        torch.stack(images, dim=1),
        torch.stack(targets, dim=1),
        dataset.info.class_names,
    )


def draw(sheet: Sheet, path: Path, *, title: str) -> None:
    """Draw each sample on a line of its own: the original with its class, then the variants.

    A variant has a caption only where its target is not the class of the original.

    Raises:
        InputError: the file cannot be written.
    """
    own = F.one_hot(sheet.labels, len(sheet.class_names)).to(torch.float32)
    rows = []
    for i, original in enumerate(sheet.original):
        first = caption(own[i], sheet.class_names)
        row = [Tile(original, first)]
        for image, target in zip(sheet.variants[i], sheet.targets[i], strict=True):
            shown = caption(target, sheet.class_names)
            row.append(Tile(image, shown if shown != first else ()))
        rows.append(row)
    try:
        draw_tiles(rows, path, title=title, first_apart=True)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {error}") from error
