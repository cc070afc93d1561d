"""`backbones sweep NAME --over optim.lr 1e-4 3e-4 --over seed 0 1`: runs that differ in some options, and a table."""

import dataclasses
import inspect
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import tyro

from backbones.commands.options import check_given_once, check_options, given_options, read_options
from backbones.commands.train import (
    EARLY,
    annotations_of,
    choose_components,
    describe_choices,
    find_base,
    parse as parse_train,
    with_duration,
)
from backbones.errors import InputError, check_known
from backbones.experiment import COMPONENTS, Experiment
from backbones.ranges import Count, Range, Seed, is_tuple
from backbones.run.config import flatten
from backbones.run.lock import locked
from backbones.run.sweep.axes import Axis, Combination, draw, grid, parse_axes, parse_axis
from backbones.run.sweep.jobs import Job, end_with_parent, run_job
from backbones.run.sweep.members import SWEEP, How, Plan, Sweep, find_folder, make_sweep, read_sweep, write_sweep
from backbones.run.sweep.run_sweep import VMAPPED_HALVING, run_sweep

PROG = "backbones sweep"

DESCRIPTION = (
    "Train an experiment with every combination of some options, or with random ones: backbones sweep NAME "
    "--over optim.lr 1e-4 3e-4 1e-3 --over seed 0 1 2. The same command goes on where it was stopped. All other "
    "options are those of the experiment, as in train."
)

OVER_HELP = (
    "An option of the experiment, and the values that it takes, each as after --FIELD; several words in quotes. Given "
    "several times, all combinations are run. With --random N, LOW..HIGH or LOW..HIGH:log is a range."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The command line."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    over: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]], tyro.conf.arg(metavar="FIELD VALUE...", help=OVER_HELP)
    ] = ()
    random: Count | None = None
    """How many combinations to draw, instead of all."""
    sweep_seed: Seed = 0
    """Seed of these draws."""
    halving: Annotated[int, Range("[2, inf)")] | None = None
    """Successive halving: all members train for a part of their steps, the best one in this many goes on, and so on."""
    how: Literal["auto"] | How = "auto"
    """One run after another, several processes at a time, or all in one vmapped step, for members that differ in the
    seed and in numbers of the optimizer only. Auto measures and takes the fastest; a sweep goes on as it began."""
    workers: Count | None = None
    """Processes at a time, each with its share of the cores; None for one per core, up to 8, or one per GPU."""
    sweep_dir: Path | None = None
    """Folder of the sweep; None for that of the same sweep, or the next of sweeps/NAME, sweeps/NAME-2, ..."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="SWEEP")] = None
    """Continue the sweep in this folder, without its command line."""
    only: Annotated[str | None, tyro.conf.arg(metavar="N|MEMBER")] = None
    """Run this member alone, by its number or its folder, as a job of a cluster does; the others stay as they are."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Vary the experiment in this config.json."""
    until: Count | None = None
    """With --only: save and stop after this step, and end at once when stdin is closed, as a sweep starts members."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.until is not None and self.only is None:
            raise InputError("--until is for one member, named by --only; --steps is the length of all runs")
        if self.sweep_seed and self.random is None and self.resume is None:
            raise InputError("--sweep-seed is for the draws of --random N; the seed of the runs is --seed")
        if self.workers is not None and self.how in ("sequence", "vmap"):
            raise InputError(f"--workers is for --how processes, not {self.how}; leave one of them out")
        if self.how == "vmap" and self.halving is not None:
            raise InputError(VMAPPED_HALVING)
        if self.only is not None and (self.how != "auto" or self.workers is not None):
            raise InputError("--how and --workers are for all members, and --only names one; leave them out")


def main(args: list[str]) -> bool:
    """Run a command line; False if the process of a member failed.

    Raises:
        InputError: the sweep cannot be run as it is.
    """
    command = parse(args)
    check_given_once(args, annotations_of(command.experiment))
    if command.only is not None and command.sweep_dir is None and command.resume is None:
        raise InputError("--only: name the folder of the sweep by --sweep-dir, so that all its jobs find it")
    sweep, folder = _open(command, args)
    if command.only is not None:
        _run_one(command, sweep, folder)
        return True
    return not run_sweep(sweep, folder, how=command.how, workers=command.workers)


def parse(args: Sequence[str]) -> Command:
    """Read a command line.

    Raises:
        InputError: a name is unknown, or the sweep to resume cannot be read.
        SystemExit: tyro has printed help or what is wrong with the options.
    """
    known, _ = EARLY.parse_known_args(args)
    if known.resume is not None:
        experiment, options = read_sweep(Path(known.resume))[0].experiment, [*args]
    else:
        base, options = find_base(args, {}, PROG)
        experiment, options = choose_components(base, options)
        experiment = with_duration(experiment, options)
        options += _options(_first_values(experiment, args), experiment)
    description = f"{DESCRIPTION}\n\n{describe_choices(experiment, {})}"
    return read_options(Command(experiment=experiment), options, prog=PROG, description=description)


def _first_values(experiment: Experiment, args: Sequence[str]) -> dict[str, str]:
    """Field -> the first of its values after `--over`, of options without a default, which tyro would ask for."""
    words = zip(args, args[1:], args[2:], strict=False)
    axes = [parse_axis([field, text]) for arg, field, text in words if arg == "--over"]
    without = {
        f"{kind}.{option}"
        for kind in COMPONENTS
        for option, value in getattr(experiment, kind).values.items()
        if value is inspect.Parameter.empty
    }
    return {axis.field: axis.values[0] for axis in axes if axis.field in without}


def _open(command: Command, args: Sequence[str]) -> tuple[Sweep, Path]:
    """The sweep of a command line, and its folder."""
    if command.resume is not None:
        sweep, _ = read_sweep(command.resume)
        own = (command.over, command.random, command.halving, command.sweep_dir, command.sweep_seed, command.config)
        if any(own) or command.experiment != sweep.experiment:
            raise InputError(
                "--resume continues a sweep as it is: give it no other options but --how, --workers, --only"
            )
        return sweep, command.resume
    axes = parse_axes(command.over)
    _check_fields(axes, command.experiment)
    given = given_options(args)
    for axis in axes:
        kind, dot, name = axis.field.rpartition(".")
        if {axis.field, f"{kind}{dot}no_{name}"} & {*given}:
            raise InputError(f"--{axis.field.replace('_', '-')} is varied by --over, so its other value has no effect")

    def member(values: Combination) -> Experiment:
        return parse_train([*_without_own(args), *_options(values, command.experiment)], {}, prog=PROG).experiment

    def is_integer(field: str) -> bool:
        ends = next(axis.values for axis in axes if axis.field == field)
        others = {axis.field: axis.values[0] for axis in axes}  # such as the component it is of
        values = [flatten(member({**others, field: end}))[field] for end in ends]  # each is checked as by train
        return all(isinstance(value, int) and not isinstance(value, bool) for value in values)

    if command.random is None:
        combinations = grid(axes)
    else:
        combinations = draw(axes, command.random, seed=command.sweep_seed, is_integer=is_integer)
    members = [(values, member(values)) for values in combinations]
    sweep = make_sweep(command.experiment, axes, members, halving=command.halving)
    return sweep, find_folder(sweep, command.sweep_dir)


def _check_fields(axes: Sequence[Axis], experiment: Experiment) -> None:
    """Raise InputError for a field that the experiment does not have."""
    fields = [field.name for field in dataclasses.fields(Experiment) if field.name != "name"]
    replaced = [axis.field for axis in axes if axis.field in COMPONENTS]
    for kind in COMPONENTS:
        fields += [f"{kind}.{option}" for option in getattr(experiment, kind).defaults]
    for axis in axes:
        if axis.field.partition(".")[0] not in replaced:  # else the options are those of another component
            check_known("field for --over", axis.field, fields)


def _without_own(args: Sequence[str]) -> list[str]:
    """The arguments that are those of train."""
    own = {field.name for field in dataclasses.fields(Command)} - {"experiment", "config"}
    kept, skips = [], False
    for arg in args:
        if name := given_options([arg]):
            skips = name[0] in own
        if not skips:
            kept.append(arg)
    return kept


def _options(values: Combination, experiment: Experiment) -> list[str]:
    """Values as options of train: `--optim.lr=1e-3`, `--augment.no-flip`; `--augment.scale 0.5 1` for "0.5 1"."""
    options: list[str] = []
    annotations = annotations_of(experiment)  # without those of a component that is varied too
    for field, text in values.items():
        kind, dot, name = field.replace("_", "-").rpartition(".")
        if text.lower() in ("true", "false"):
            options.append(f"--{kind}{dot}{'' if text.lower() == 'true' else 'no-'}{name}")
        elif " " in text and is_tuple(annotations.get(field, tuple[str, ...])):
            options += [f"--{kind}{dot}{name}", *text.split()]
        else:
            options.append(f"--{kind}{dot}{name}={text}")
    return options


def _run_one(command: Command, sweep: Sweep, folder: Path) -> None:
    """Run one member in this process."""
    names, only = [member.name for member in sweep.members], command.only or ""
    if only.isdecimal() and int(only) < len(names):
        only = names[int(only)]
    member = sweep.members[names.index(check_known("member", only, names))]
    if command.until is not None:
        end_with_parent()
    elif sweep.halving is not None:
        raise InputError(
            "--only: which members of a sweep with --halving go on is decided by all; run it without --only"
        )
    if not (folder / SWEEP).exists():
        with suppress(InputError), locked(folder, option="--sweep-dir"):  # else another job is just writing it
            write_sweep(folder, sweep, Plan())
    run_job(Job(folder / member.name, member.experiment, command.until or member.num_steps))
