"""`backbones schedule --schedule cosine --steps 1000 --plot out.png`: draw a learning-rate schedule."""

import argparse
import dataclasses
from pathlib import Path
from typing import Annotated

import torch
import tyro

from backbones.commands.options import FUNCTIONS, find_function, read_options
from backbones.component import Use
from backbones.errors import Count, InputError, check_ranges
from backbones.optim import Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What one call asks for."""

    schedule: Annotated[Use, tyro.conf.arg(name="schedule")]
    steps: Count = 1000
    """Steps of the run."""
    plot: Path = Path("schedule.png")
    """Image file to write."""

    def __post_init__(self) -> None:
        check_ranges({"steps": Count}, {"steps": self.steps}, prefix="--")


def main(args: list[str]) -> None:
    """Run a command line.

    Raises:
        InputError: a name is unknown, a number is out of its range, or the file cannot be written.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--schedule", default="cosine")
    chosen, options = early.parse_known_args(args)
    command = read_options(
        Command(schedule=Use(find_function("schedule", chosen.schedule))),
        options,
        prog="backbones schedule",
        description=f"Draw a learning-rate schedule. --schedule NAME: {', '.join(FUNCTIONS['schedule'])}",
    )
    plot(command.schedule.make(num_steps=command.steps), command.steps, command.plot, title=repr(command.schedule))
    print(f"drew {command.steps} steps of {command.schedule.name} into {command.plot}")


def plot(schedule: Schedule, num_steps: int, path: Path, *, title: str) -> None:
    """Draw the factor over the steps into an image file, whose suffix says of which format.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    steps = torch.arange(num_steps + 1)
    axes.plot(steps, [schedule(step).item() for step in steps])
    axes.set(xlabel="step", ylabel="factor on the learning rate", title=title)
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {error}") from error
