"""`backbones schedule --schedule cosine --steps 1000 --plot out.png`: draw a learning-rate schedule."""

import dataclasses
from pathlib import Path

import torch
from matplotlib.figure import Figure  # not pyplot: no window system, no global state

from backbones.commands.options import FUNCTIONS, check_options, choose_by_name, read_options
from backbones.component import Use, use
from backbones.errors import InputError
from backbones.optim import Schedule
from backbones.optim.schedule import cosine
from backbones.ranges import Count
from backbones.run.analysis.pictures import check_picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The command line."""

    schedule: Use
    steps: Count = 1000
    """Steps of the run."""
    plot: Path = Path("schedule.png")
    """Image file to write."""

    def __post_init__(self) -> None:
        check_options(self)


def main(args: list[str]) -> None:
    """Run a command line."""
    chosen, options = choose_by_name(args, {"schedule": use(cosine)})
    description = f"Draw a learning-rate schedule. --schedule NAME: {', '.join(FUNCTIONS['schedule'])}"
    command = read_options(
        Command(schedule=chosen["schedule"]), options, prog="backbones schedule", description=description
    )
    plot(command.schedule.make(num_steps=command.steps), command.steps, command.plot, title=repr(command.schedule))
    print(f"drew {command.steps} steps of {command.schedule.name} into {command.plot}")


def plot(schedule: Schedule, num_steps: int, path: Path, *, title: str) -> None:
    """Draw the factor over the steps into an image file, whose suffix is its format.

    Raises:
        InputError: the file cannot be written.
    """
    check_picture(path)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([schedule(step).item() for step in torch.arange(num_steps + 1)])
    axes.set(xlabel="step", ylabel="factor on the learning rate", title=title)
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {error}") from error
