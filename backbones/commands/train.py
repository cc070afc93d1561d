"""The command line of `train.py`: `[EXPERIMENT] [--model NAME] [--optim NAME] ... [--FIELD VALUE ...]`."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import tyro

import backbones.distributed as distributed
from backbones.commands.options import FUNCTIONS, find_function, read_options
from backbones.component import Use, import_object
from backbones.errors import InputError, check_known
from backbones.experiment import COMPONENTS, Experiment
from backbones.models import FAMILIES
from backbones.run.checkpoint import Which, parse_which
from backbones.run.run import run
from backbones.run.run_dir import RunDir, latest_run_dir, read_config, read_experiment, stored_config

RESUME_HELP = (
    "Resume the run in the run folder (without --run-dir, the newest of that name), whose configuration is then the "
    "default, from its latest checkpoint (so does --resume alone), its best one or that of a step; auto takes the "
    "newest intact one, and starts a new run where there is none. PATH resumes from a checkpoint elsewhere, into a new "
    "folder."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What one call of train.py asks for."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """Folder of the run; None for a new one, runs/NAME or with a number behind it. A run is never overwritten."""
    resume: Annotated[str | None, tyro.conf.arg(metavar="auto|latest|best|STEP|PATH", help=RESUME_HELP)] = None
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Start a new run of the experiment in this config.json."""


def main(args: list[str], experiments: Mapping[str, Experiment] | None = None) -> None:
    """Run a command line, without the program's name.

    Args:
        args: `[EXPERIMENT] [OPTIONS]`.
        experiments: by name; the first is run where none is named.
    """
    distributed.join()
    command = parse(args, experiments or {})
    run(
        command.experiment,
        run_dir=command.run_dir,
        resume=None if command.resume is None else parse_which(command.resume),
    )


def parse(args: Sequence[str], experiments: Mapping[str, Experiment]) -> Command:
    """Read a command line, without the program's name.

    Experiments and components are looked up first, so that tyro sees, and `--help` shows, the options of what was
    chosen, with the values that it would run with.

    Raises:
        InputError: a name is unknown; the message offers the nearest ones.
        SystemExit: tyro has printed help or what is wrong with the options.
    """
    args = _resume_the_latest(args)
    name = args.pop(0) if args and not args[0].startswith("-") else next(iter(experiments), "")
    known, _ = _EARLY.parse_known_args(args)
    if known.config is not None:
        base = read_experiment(known.config, distributed.on_main(lambda: read_config(known.config)))
    else:
        base = _find_experiment(name, experiments)
    experiment, options = choose_components(base, args)
    if known.resume is not None:
        which = parse_which(known.resume)
        stored = distributed.on_main(lambda: _stored(known.run_dir, experiment.name, which))
        if stored is not None:
            experiment, options = choose_components(read_experiment(*stored), args)
    command = Command(experiment=with_duration(experiment, options))
    return read_options(command, options, prog="train.py", description=describe(experiment, experiments))


def _stored(run_dir: Path | None, name: str, which: Which) -> tuple[Path, dict[str, Any]] | None:
    return stored_config(latest_run_dir(name) if run_dir is None else RunDir(run_dir), which)


_EARLY = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
"""The options that decide which experiment the others are options of."""
_EARLY.add_argument("--run-dir", "--run_dir", nargs="?", type=Path)
_EARLY.add_argument("--resume", nargs="?")
_EARLY.add_argument("--config", nargs="?", type=Path)


def _find_experiment(name: str, experiments: Mapping[str, Experiment]) -> Experiment:
    if not name:
        raise InputError("name an experiment, as module:name")
    if ":" not in name:
        return experiments[check_known("experiment", name, experiments)]
    found = import_object(name)
    if not isinstance(found, Experiment):
        raise InputError(f"{name} is a {type(found).__name__}; wanted an Experiment")
    return found


def choose_components(experiment: Experiment, args: Sequence[str]) -> tuple[Experiment, list[str]]:
    """Replace the components that `--KIND NAME`, `--KIND=NAME` or `--KIND module:function` name.

    Returns:
        The experiment, under a name that says what was chosen, and the other arguments.
    """
    others, chosen = [], []
    remaining = iter(args)
    for arg in remaining:
        kind, equals, name = arg.removeprefix("--").partition("=")
        if not arg.startswith("--") or kind not in COMPONENTS:
            others.append(arg)
            continue
        function = find_function(kind, name if equals else next(remaining, ""))
        if function != getattr(experiment, kind).function:  # else keep the experiment's own options
            component: dict[str, Any] = {kind: Use(function)}
            experiment = dataclasses.replace(experiment, **component)
            chosen.append(kind)
    if chosen:
        base = f"{experiment.data.name}-{experiment.model.name}" if {"data", "model"} & {*chosen} else experiment.name
        experiment = dataclasses.replace(
            experiment, name=f"{base}-{experiment.optim.name}" if "optim" in chosen else base
        )
    return experiment, others


def _resume_the_latest(args: Sequence[str]) -> list[str]:
    """`--resume` alone means `--resume latest`."""
    completed = []
    for arg, following in pairwise([*args, "--"]):
        completed += [arg, "latest"] if arg == "--resume" and following.startswith("--") else [arg]
    return completed


def with_duration(experiment: Experiment, args: Sequence[str]) -> Experiment:
    """The experiment, ready for `--epochs` in the place of its steps, or the other way round."""
    named = {arg.partition("=")[0] for arg in args}
    if "--epochs" in named and "--steps" not in named:
        return dataclasses.replace(experiment, steps=None, epochs=experiment.epochs or 1.0)
    if "--steps" in named and "--epochs" not in named:
        return dataclasses.replace(experiment, steps=experiment.steps or 1, epochs=None)
    return experiment


def describe(experiment: Experiment, experiments: Mapping[str, Experiment]) -> str:
    """What can be chosen, for `--help`."""
    lines = ["Train an image backbone. What is chosen stands in brackets; module:name is imported."]
    lines.append(f"[EXPERIMENT]: {_mark(experiment.name, experiments)}")
    for kind, functions in FUNCTIONS.items():
        names = list(functions)
        chosen = getattr(experiment, kind).name
        if kind == "model":
            lines.append(f"--model NAME: [{chosen}]")
            lines += [f"    {name}: {', '.join(members)}" for name, members in FAMILIES.items()]
        else:
            lines.append(f"--{kind} NAME: {_mark(chosen, names)}")
    return "\n".join(lines)


def _mark(chosen: str, names: Sequence[str] | Mapping[str, Any]) -> str:
    shown = [f"[{name}]" if name == chosen else name for name in names]
    return ", ".join(shown if chosen in names else [f"[{chosen}]", *shown])
