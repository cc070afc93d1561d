"""Draw a schedule: `python -m backbones.optim.schedule --schedule cosine --steps 1000 --plot out.png`."""

import sys
from argparse import ArgumentParser
from functools import partial
from pathlib import Path

import torch
import tyro

from backbones.command_line import one_message
from backbones.errors import InputError, check_known
from backbones.optim.schedule import SCHEDULES, Schedule


def plot(schedule: Schedule, num_steps: int, path: Path, *, title: str) -> None:
    """Draw the factor over the steps into an image file; its ending says of which kind.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

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


def main(args: list[str]) -> None:
    """Read the command line and draw. What is not --schedule, --steps or --plot is a field of the schedule."""
    parser = ArgumentParser(
        prog="python -m backbones.optim.schedule",
        description="Draw a schedule. The fields of the schedule that is chosen are options too; they follow below.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--schedule", default="cosine", help=f"one of: {', '.join(SCHEDULES)}")
    parser.add_argument("--steps", type=int, default=1000, help="steps of the run")
    parser.add_argument("--plot", type=Path, default=Path("schedule.png"), help="image file to write")
    options, fields = parser.parse_known_args(args)
    if {"-h", "--help"} & set(fields):  # tyro, below, goes on with those of the schedule
        parser.print_help()
        print()
    function = SCHEDULES[check_known("schedule", options.schedule, SCHEDULES)]
    if options.steps < 1:
        raise InputError(f"--steps is {options.steps}; it must be 1 or more")
    schedule = tyro.cli(
        partial(function, options.steps),
        args=fields,
        prog=f"python -m backbones.optim.schedule --schedule {options.schedule}",
    )
    plot(schedule, options.steps, options.plot, title=" ".join([options.schedule, *fields]))
    print(f"drew {options.steps} steps of {options.schedule} into {options.plot}")


if __name__ == "__main__":
    with one_message():
        main(sys.argv[1:])
