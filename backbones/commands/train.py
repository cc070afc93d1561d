"""The command line of `train.py`: `[EXPERIMENT] [--model NAME] [--optim NAME] ... [--FIELD VALUE ...]`."""

import argparse
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, cast

import tyro

import backbones.distributed as distributed
from backbones.commands.options import (
    FUNCTIONS,
    check_given_once,
    choose_by_name,
    find_experiment,
    given_options,
    read_options,
)
from backbones.commands.show import list_experiments, show
from backbones.component import options_of
from backbones.errors import InputError
from backbones.experiment import COMPONENTS, Experiment
from backbones.models import FAMILIES, LIBRARIES
from backbones.run.checkpoint import parse_which
from backbones.run.config import list_changes, parse_experiment
from backbones.run.files import read_json
from backbones.run.resume import config_to_resume
from backbones.run.run import run
from backbones.run.run_dir import latest_run_dir
from backbones.run.step_profile import parse_steps

RESUME_HELP = (
    "Resume the run in --run-dir (by default the newest one of that name), with its configuration as the default: from "
    "its latest checkpoint (also if no value is given), its best one, or that of a step; auto takes the newest intact "
    "one, or starts a new run if there is none. PATH resumes from a checkpoint elsewhere, in a new folder."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The command line of train.py."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """Folder of the run; None for the next of runs/NAME, runs/NAME-2, ... A run is never overwritten."""
    resume: Annotated[str | None, tyro.conf.arg(metavar="auto|latest|best|STEP|PATH", help=RESUME_HELP)] = None
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Start a new run of the experiment in this config.json."""
    profile: Annotated[str | None, tyro.conf.arg(metavar="A:B")] = None
    """Trace the steps A to B - 1 by torch.profiler, into the run folder, and print where time and memory went."""
    log_to: Annotated[tuple[str, ...], tyro.conf.arg(metavar="wandb|trackio|mlflow|MODULE:NAME ...")] = ()
    """Send the metrics to these trackers too; a run that is resumed with it continues there. See docs/logging.md."""
    list_all: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Print every experiment with what it reaches, and exit."""
    show: bool = False
    """Print the experiment as Python to paste and as JSON, and exit."""


def main(
    args: list[str], experiments: Mapping[str, Experiment] | None = None, claims: Mapping[str, str] | None = None
) -> None:
    """Run a command line; without an experiment in it, the first of `experiments`.

    Args:
        args: the command line, without the name of the program.
        experiments: those with a short name.
        claims: name -> what is known of an experiment, for `--list`.
    """
    distributed.join()
    command = parse(args, experiments or {}, prog="train.py" if experiments else "backbones train")
    check_given_once(args, annotations_of(command.experiment))
    if command.list_all:
        distributed.print0(list_experiments(experiments or {}, claims or {}))
    elif command.show:
        distributed.print0(show(command.experiment))
    else:
        train(command)


def annotations_of(experiment: Experiment) -> dict[str, Any]:
    """Option -> type, of an experiment and of its components, as `optim.lr`."""
    options = dict(options_of(Experiment, given=()))
    for kind in COMPONENTS:
        options |= {f"{kind}.{name}": each for name, each in options_of(getattr(experiment, kind).function).items()}
    return {"log_to": tuple[str, ...], **{name: each.annotation for name, each in options.items()}}


def train(command: Command) -> None:
    """Run what a command line asks for."""
    resume = None if command.resume is None else parse_which(command.resume)
    profile = None if command.profile is None else parse_steps(command.profile)
    run(command.experiment, run_dir=command.run_dir, resume=resume, profile=profile, log_to=command.log_to)


def parse(args: Sequence[str], experiments: Mapping[str, Experiment], *, prog: str = "train.py") -> Command:
    """Read a command line.

    Experiments and components are looked up first, so that tyro sees, and `--help` shows, the options of what was
    chosen, with the values that it would run with.

    Raises:
        InputError: a name is unknown; the message offers the nearest ones.
        SystemExit: tyro has printed help or what is wrong with the options.
    """
    args = _resume_the_latest(args)
    if args[:1] == ["--show"]:  # the name of the experiment follows
        args = [*args[1:], "--show"]
    is_named = bool(args) and not args[0].startswith("-")
    base, args = find_base(args, experiments, prog)
    known, _ = EARLY.parse_known_args(args)
    named, options = choose_components(base, args)

    def read(experiment: Experiment) -> Command:
        description = describe_choices(experiment, experiments)
        return read_options(
            Command(experiment=with_duration(experiment, options)), options, prog=prog, description=description
        )

    if known.resume is not None:
        which = parse_which(known.resume)
        name = known.name or named.name
        stored = distributed.on_main(lambda: config_to_resume(known.run_dir or latest_run_dir(name), which))
        if stored is not None:
            command = read(choose_components(parse_experiment(*stored), args)[0])
            with suppress(SystemExit, InputError), redirect_stderr(StringIO()):
                if is_named or known.config is not None:
                    _print_kept(command.experiment, read(named).experiment)
            return command
    return read(named)


def _print_kept(kept: Experiment, named: Experiment) -> None:
    """Print in what a run that is resumed differs from what the command line would run from the start."""
    changes = {name: change for name, change in list_changes(kept, named).items() if name not in ("name", "pass_over")}
    if changes:
        shown = "; ".join(f"{name} {change.replace(' -> ', ', not ')}" for name, change in changes.items())
        distributed.print0(f"the run keeps its own settings where {named.name} has others: {shown}")


EARLY = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
"""Read before tyro: these options decide whose values are the defaults of all others."""
EARLY.add_argument("--name", nargs="?")
EARLY.add_argument("--run-dir", "--run_dir", nargs="?", type=Path)
EARLY.add_argument("--resume", nargs="?")
EARLY.add_argument("--config", nargs="?", type=Path)


def find_base(args: Sequence[str], experiments: Mapping[str, Experiment], prog: str) -> tuple[Experiment, list[str]]:
    """The experiment that a command line begins with, or that of its `--config`, and the other arguments."""
    named = bool(args) and not args[0].startswith("-")
    name, options = (args[0], [*args[1:]]) if named else (next(iter(experiments), ""), [*args])
    known, _ = EARLY.parse_known_args(options)
    if known.config is not None and named:
        raise InputError(f"--config {known.config} brings its experiment; leave out {name}")
    if known.config is not None:
        return parse_experiment(known.config, distributed.on_main(lambda: read_json(known.config))), options
    if not name and {"-h", "--help"} & {*options}:
        distributed.print0(f"usage: {prog} EXPERIMENT [OPTIONS], and {prog} EXPERIMENT --help for the options")
        raise SystemExit(0)
    if not name:
        which = parse_which(known.resume or "auto")
        folder = which if isinstance(which, Path) else known.run_dir
        stored = None if folder is None else distributed.on_main(lambda: config_to_resume(folder, which))
        if stored is None:
            raise InputError("name an experiment, as digits-vit-tiny or module:name")
        return parse_experiment(*stored), options
    return find_experiment(name, experiments), options


def choose_components(experiment: Experiment, args: Sequence[str]) -> tuple[Experiment, list[str]]:
    """Replace the components that are named in a command line.

    Returns:
        The experiment, under a name that says what was chosen, and the other arguments.
    """
    components = {kind: getattr(experiment, kind) for kind in COMPONENTS}
    chosen, others = choose_by_name(args, components)
    new = dataclasses.replace(experiment, **cast(Any, chosen))
    name, named_by = experiment.name, ["data", "model", "optim"]
    trained = f"{experiment.data.name}-{experiment.model.name}"
    if name.startswith(trained):  # as cifar10-resnet18-plus does
        name, named_by = f"{new.data.name}-{new.model.name}{name.removeprefix(trained)}", ["optim"]
    name = "-".join([name, *(chosen[kind].name for kind in named_by if chosen[kind] is not components[kind])])
    return dataclasses.replace(new, name=name), others


def _resume_the_latest(args: Sequence[str]) -> list[str]:
    """`--resume` alone means `--resume latest`."""
    completed = []
    for arg, following in pairwise([*args, "--"]):
        completed += [arg, "latest"] if arg == "--resume" and following.startswith("--") else [arg]
    return completed


def with_duration(experiment: Experiment, args: Sequence[str]) -> Experiment:
    """The experiment in epochs if `args` give `--epochs` alone, or in steps if they give `--steps` alone."""
    given = given_options(args)
    if "epochs" in given and "steps" not in given:
        return dataclasses.replace(experiment, steps=None, epochs=experiment.epochs or 1.0)
    if "steps" in given and "epochs" not in given:
        return dataclasses.replace(experiment, steps=experiment.steps or 1, epochs=None)
    return experiment


def describe_choices(experiment: Experiment, experiments: Mapping[str, Experiment]) -> str:
    """What can be chosen, for `--help`."""
    lines = [
        "Train an image backbone. The current choice is in brackets; module:name imports your own.",
        f"[EXPERIMENT]: {_mark(experiment.name, experiments)}",
    ]
    for kind, functions in FUNCTIONS.items():
        chosen = getattr(experiment, kind).name
        if kind == "model":
            lines.append(f"--model NAME: [{chosen}]")
            lines += [f"    {name}: {', '.join(members)}" for name, members in FAMILIES.items()]
            lines.append(f"    all of another library, by --model.architecture: {', '.join(LIBRARIES)}")
        else:
            lines.append(f"--{kind} NAME: {_mark(chosen, functions)}")
    lines.append("")
    lines.append(
        "SIGTERM, SIGINT, SIGHUP or SIGUSR1 finishes the step, saves it and exits with code 75. Exit codes: 0 done, "
        "1 error, 2 wrong options, 75 stopped and saved, 130 interrupted. Several processes: docs/scale.md."
    )
    return "\n".join(lines)


def _mark(chosen: str, names: Iterable[str]) -> str:
    shown = [f"[{name}]" if name == chosen else name for name in names]
    return ", ".join(shown if f"[{chosen}]" in shown else [f"[{chosen}]", *shown])
