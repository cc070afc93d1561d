"""The command line: `train.py [EXPERIMENT] [--model NAME] [--optim NAME] ... [--FIELD VALUE ...]`."""

import argparse
import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import tyro

import backbones.distributed as distributed
from backbones.errors import check_known
from experiments import DEFAULT, EXPERIMENTS
from experiments.base import COMPONENTS, Experiment
from experiments.provenance import finished_experiment
from experiments.run_dir import experiment_to_resume

RESUME_HELP = (
    "Go on with the run in the run folder, whose configuration is then the default, from its latest checkpoint (so "
    "does --resume alone), its best one or that of a step; auto takes the newest that is whole, and begins where there "
    "is no run yet. PATH goes on from a checkpoint elsewhere, in a new run folder."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What one call of train.py asks for."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """Folder of the run; None for runs/NAME. A folder that holds a run already is never overwritten."""
    resume: Annotated[str | None, tyro.conf.arg(metavar="auto|latest|best|STEP|PATH", help=RESUME_HELP)] = None
    reproduce: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Run the experiment of this finished run again, in RUN-again, and say whether the parameters are equal."""


def parse(args: Sequence[str]) -> Command:
    """Read a command line, without the program's name.

    The name of an experiment and of components are looked up first, so that tyro sees, and `--help` shows, the fields
    of what was chosen with the values that it would run with.

    Raises:
        InputError: a name is unknown; the message offers the nearest ones.
        SystemExit: tyro has printed help or what is wrong with the fields.
    """
    args = _resume_the_latest(args)
    name = args.pop(0) if args and not args[0].startswith("-") else DEFAULT
    experiment, fields = _choose_components(EXPERIMENTS[check_known("experiment", name, EXPERIMENTS)], args)
    stored = _stored_experiment(fields, run_name=experiment.name)
    if stored is not None:
        experiment, fields = _choose_components(stored, args)
    return tyro.cli(
        Command,
        default=Command(experiment=experiment),
        args=fields,
        prog="train.py",
        description=_describe(experiment),
        console_outputs=distributed.is_main(),
    )


def _choose_components(experiment: Experiment, args: list[str]) -> tuple[Experiment, list[str]]:
    """Put in the components that `--KIND NAME` or `--KIND=NAME` asks for; give back what is left of `args`."""
    left = []
    remaining = iter(args)
    for arg in remaining:
        kind, equals, name = arg.removeprefix("--").partition("=")
        if not arg.startswith("--") or kind not in COMPONENTS:
            left.append(arg)
            continue
        name = check_known(kind, name if equals else next(remaining, ""), COMPONENTS[kind])
        if name != getattr(experiment, kind).name:  # else keep the experiment's own options
            experiment = dataclasses.replace(experiment, **{kind: COMPONENTS[kind][name]()})
            if kind in ("data", "model"):
                experiment = dataclasses.replace(experiment, name=f"{experiment.data.name}-{experiment.model.name}")
    return experiment, left


def _resume_the_latest(args: Sequence[str]) -> list[str]:
    """`--resume` alone means `--resume latest`."""
    completed = []
    for arg, following in pairwise([*args, "--"]):
        completed += [arg, "latest"] if arg == "--resume" and following.startswith("--") else [arg]
    return completed


def _stored_experiment(args: Sequence[str], *, run_name: str) -> Experiment | None:
    """The configuration of the run that the command resumes or reproduces, if it does and there is one."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--run-dir", "--run_dir", nargs="?", type=Path)
    parser.add_argument("--resume", nargs="?")
    parser.add_argument("--reproduce", nargs="?", type=Path)
    known, _ = parser.parse_known_args(args)
    if known.reproduce is not None:
        return finished_experiment(known.reproduce)
    if known.resume is not None:
        return experiment_to_resume(known.run_dir or Path("runs") / run_name, known.resume)
    return None


def _describe(experiment: Experiment) -> str:
    choices = {"[EXPERIMENT]": (experiment.name, EXPERIMENTS)}
    for kind, by_name in COMPONENTS.items():
        choices[f"--{kind} NAME"] = (getattr(experiment, kind).name, by_name)
    lines = [
        f"{flag}: {', '.join(f'[{name}]' if name == chosen else name for name in names)}"
        for flag, (chosen, names) in choices.items()
    ]
    return "\n".join(["Train an image backbone. What is chosen stands in brackets.", *lines])
