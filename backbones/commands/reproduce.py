"""`backbones reproduce RUN`: run a finished run again, and compare the parameters to the last bit."""

import shlex
from pathlib import Path
from typing import Any

import backbones.distributed as distributed
import backbones.tree as tree
from backbones.commands.options import check_given_once
from backbones.commands.train import annotations_of, parse, train
from backbones.errors import InputError
from backbones.run.checkpoint import read_checkpoint
from backbones.run.checkpoint.arrays import subtree
from backbones.run.config import list_changes, read_experiment
from backbones.run.files import read_json
from backbones.run.metric_lines import TIMES, read_metrics
from backbones.run.provenance import (
    list_environment_changes,
    list_init_changes,
    list_resumes,
    list_trained,
    read_starts,
    recorded_threads,
)
from backbones.run.run_dir import CHECKPOINTS, CONFIG, RESULT


def main(args: list[str]) -> bool:
    """Run a command line; False if the parameters differ.

    Raises:
        InputError: there is no such run, or it is not finished.
    """
    if not args or args[0] in ("-h", "--help"):
        print("usage: backbones reproduce RUN [--run-dir DIR] [--OPTION VALUE ...]\n\n" + (__doc__ or ""))
        return True
    before = Path(args[0])
    distributed.on_main(lambda: check_finished(before))
    new = Path(f"{before}-again")
    args = ["--config", str(before / CONFIG), "--run-dir", str(new), *args[1:]]
    command = parse(args, {}, prog="backbones reproduce RUN")
    check_given_once(args, annotations_of(command.experiment))
    if command.show or command.list_all:
        raise InputError("--show and --list train nothing; they are options of train.py")
    starts = distributed.on_main(lambda: starts_of(before))
    with recorded_threads(starts):
        train(command)
    return distributed.on_main(lambda: compare_runs(before, command.run_dir or new))


def check_finished(run_dir: Path) -> None:
    """Raise InputError unless there is a run in a folder, and it is finished."""
    if not (run_dir / CONFIG).exists():
        raise InputError(f"there is no run in {run_dir}: no {run_dir / CONFIG}")
    if not (run_dir / RESULT).exists():
        hint = f"--run-dir {shlex.quote(str(run_dir))} --resume auto continues it"
        raise InputError(f"the run in {run_dir} is not finished, as {run_dir / RESULT} is not there; {hint}")
    result = read_json(run_dir / RESULT)
    path = run_dir / CHECKPOINTS / str(result.get("steps"))
    known = tree.sha256(subtree(read_checkpoint(path).arrays, "params")) if path.exists() else None
    if "params_sha256" not in result or known not in (None, result["params_sha256"]):
        raise InputError(f"{run_dir / RESULT} is damaged: its params_sha256 is not that of {path}")


def starts_of(run_dir: Path) -> list[dict[str, Any]]:
    """The starts of a finished run that have trained: it may have been resumed only to be evaluated in another way."""
    return list_trained(read_starts(run_dir), 0, read_json(run_dir / RESULT)["steps"])


def compare_runs(before: Path, now: Path) -> bool:
    """Print whether two finished runs ended in equal parameters, and what may explain a difference; True if equal."""
    runs = (before, now)
    results = [read_json(run_dir / RESULT) for run_dir in runs]
    equal = results[0]["params_sha256"] == results[1]["params_sha256"]
    print(f"the parameters are {'equal to the last bit' if equal else 'not equal'}")
    for result in results:
        print(f"params_sha256 {result['params_sha256']}")
    if not equal:
        print(_first_difference(before, now))
    settings = list_changes(*(read_experiment(path / CONFIG) for path in runs))
    for name, change in settings.items():
        print(f"other settings: {name}: {change}")
    starts = [starts_of(run_dir) for run_dir in runs]
    for line in (*list_resumes(str(before), starts[0]), *list_init_changes(*starts)):
        print(line)
    for line in list_environment_changes(starts[0], starts[1][-1]) if starts[1] else ():
        print(line)
    return equal


def _first_difference(before: Path, now: Path) -> str:
    again = {(line["step"], line["split"]): line for line in read_metrics(now)}
    for one in read_metrics(before):
        other = again.get((one["step"], one["split"]), one)
        for name in sorted(one.keys() - set(TIMES)):
            if one[name] != other.get(name):
                where = f"step {one['step']}, {one['split']}"
                return f"the first metric that differs: {where}: {name} {one[name]} -> {other.get(name)}"
    return "no metric differs in the steps of which both have lines"
