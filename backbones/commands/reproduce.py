"""`backbones reproduce RUN`: run a finished run again, and compare the parameters to the last bit."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tyro.conf import Positional

import backbones.distributed as distributed
from backbones.commands.options import read_options
from backbones.commands.train import choose_components, with_duration
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.run.metric_writer import read_metrics
from backbones.run.provenance import read_starts
from backbones.run.run import run
from backbones.run.run_dir import RunDir, list_changes, read_config, read_experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What one call asks for."""

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The finished run."""
    run_dir: Path | None = None
    """Folder of the new run; None for RUN-again."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


def main(args: list[str]) -> bool:
    """Run a command line; False if the parameters differ.

    Raises:
        InputError: there is no such run, or it is not finished.
    """
    distributed.join()
    if not args or args[0] in ("-h", "--help"):
        print("usage: backbones reproduce RUN [--run-dir DIR] [--OPTION VALUE ...]\n\n" + (__doc__ or ""))
        return True
    before = RunDir(Path(args[0]))
    experiment, options = choose_components(finished_experiment(before), args[1:])
    defaults = Command(run=before.path, experiment=with_duration(experiment, options))
    command = read_options(defaults, [args[0], *options], prog="backbones reproduce", description=__doc__ or "")
    now = RunDir(command.run_dir or before.path.with_name(before.path.name + "-again"))
    starts = distributed.on_main(lambda: read_starts(before))
    if starts:
        torch.set_num_threads(starts[-1]["num_threads"])  # their number decides how sums are rounded
    run(command.experiment, run_dir=now.path)
    distributed.barrier()  # rank 0 has written the result
    equal, lines = compare_runs(before, now)
    for line in lines:
        distributed.print0(line)
    return equal


def finished_experiment(run_dir: RunDir) -> Experiment:
    """The experiment of a run that has come to its end.

    Raises:
        InputError: there is no such run, or it has not.
    """

    def read() -> dict[str, Any]:
        if not run_dir.config.exists():
            raise InputError(f"there is no run in {run_dir.path}")
        if not run_dir.result.exists():
            raise InputError(
                f"the run in {run_dir.path} is not finished; --run-dir {run_dir.path} --resume auto continues it"
            )
        return read_config(run_dir.config)

    return read_experiment(run_dir.config, distributed.on_main(read))


def compare_runs(before: RunDir, now: RunDir) -> tuple[bool, list[str]]:
    """Whether two finished runs ended in equal parameters, and what to know about it, line by line."""
    results = [json.loads(run_dir.result.read_text()) for run_dir in (before, now)]
    equal = results[0]["params_sha256"] == results[1]["params_sha256"]
    lines = [f"the parameters are {'equal to the last bit' if equal else 'not equal'}"]
    lines += [f"params_sha256 {result['params_sha256']}" for result in results]
    if not equal:
        lines.append(_first_difference(before, now))
    settings = list_changes(*(finished_experiment(run_dir) for run_dir in (before, now)))
    lines += [f"other settings: {name}: {change}" for name, change in settings.items()]
    starts = [read_starts(run_dir) for run_dir in (before, now)]
    lines += [
        f"{before.path} was resumed from step {start['step']} with other settings: {name}: {change}"
        for start in starts[0]
        for name, change in start["changes"].items()
    ]
    if all(starts):
        lines += _other_circumstances(starts[0][-1], starts[1][-1])
    return equal, lines


def _first_difference(before: RunDir, now: RunDir) -> str:
    for one, other in zip(read_metrics(before.metrics), read_metrics(now.metrics), strict=False):
        for name in one.keys() - {"images_per_second"}:
            if one[name] != other.get(name):
                where = f"step {one['step']}, {one['split']}"
                return f"the first metric that differs: {where}: {name} {one[name]} -> {other.get(name)}"
    return "no metric differs"


def _other_circumstances(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    one, other = ({**start.pop("packages"), **start} for start in (before, now))
    ignored = ("time", "command", "step", "changes")
    return [
        f"other circumstances: {name} {one.get(name)} -> {other.get(name)}"
        for name in sorted({*one, *other} - {*ignored})
        if one.get(name) != other.get(name)
    ]
