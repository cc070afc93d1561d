"""`backbones augment-preview RUN --out a.png`: a sheet of training images before and after their augmentation."""

import dataclasses
from pathlib import Path

from backbones.commands.options import FUNCTIONS, DataRoot, check_options, choose_by_name, find_experiment, read_options
from backbones.component import Use
from backbones.errors import InputError
from backbones.experiment import Experiment, make_dataset
from backbones.ranges import Count, NonNegativeInt
from backbones.run.analysis.augment_sheet import make_sheet
from backbones.run.analysis.pictures import check_picture, save_tiles
from backbones.run.config import read_experiment
from backbones.run.run_dir import CONFIG
from backbones.types import CPU


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The command line."""

    augment: Use
    out: Path = Path("augment.png")
    """Image file to write."""
    samples: Count = 8
    """Training images, one per line: the first of the batch of the step."""
    variants: Count = 8
    """How often each is augmented: at the step and at those after it, each time in a new epoch."""
    step: NonNegativeInt = 0
    """Step of the run."""
    data_root: DataRoot = None
    """Where the data set is; None for where it was when the run was trained."""

    def __post_init__(self) -> None:
        check_options(self)


def main(args: list[str]) -> None:
    """Run a command line.

    Raises:
        InputError: there is no such run, experiment or augmentation, or the file cannot be written.
    """
    names = f"--augment NAME, for another one than the run's: {', '.join(FUNCTIONS['augment'])}"
    if not args or args[0] in ("-h", "--help"):
        print("usage: backbones augment-preview RUN [--augment NAME] [--out FILE] [--help]\n")
        print(f"RUN: a run folder, or an experiment, as digits-vit-tiny or module:name\n{names}")
        return
    experiment = read_experiment_of(args[0])
    chosen, options = choose_by_name(args[1:], {"augment": experiment.augment})
    description = f"Draw training images of {args[0]} before and after augmentation. {names}"
    command = read_options(
        Command(augment=chosen["augment"]), options, prog="backbones augment-preview", description=description
    )
    check_picture(command.out)
    rows = make_sheet(
        experiment,
        make_dataset(experiment.data, CPU, command.data_root),
        command.augment,
        samples=command.samples,
        variants=command.variants,
        step=command.step,
    ).rows
    title = f"{experiment.name} from step {command.step}: {describe_augment(command.augment)}"
    save_tiles(rows, command.out, title=title)
    print(f"drew {len(rows)} images of {experiment.data.name} under {command.augment.name} into {command.out}")


def describe_augment(augment: Use) -> str:
    """Name and fields, in short."""
    numbers = {name: value if isinstance(value, tuple) else (value,) for name, value in augment.values.items()}
    fields = [
        f"{name} {'-'.join(f'{n:.3g}' if isinstance(n, float) else str(n) for n in value)}"
        for name, value in numbers.items()
    ]
    return f"{augment.name} ({', '.join(fields)})" if fields else augment.name


def read_experiment_of(name: str) -> Experiment:
    """The experiment of a run folder, or with that name.

    Raises:
        InputError: there is none.
    """
    config = Path(name) / CONFIG
    if config.exists():
        return read_experiment(config)
    try:
        return find_experiment(name)
    except InputError as error:
        raise InputError(f"{name} is no run folder; {error}") from error
