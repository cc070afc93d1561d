"""`provenance.json`: what a run was made with, one entry for each start of it, so that it can be made again."""

import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import backbones.distributed as distributed
import backbones.tree as tree
from backbones.data import Dataset
from backbones.errors import InputError
from backbones.files import write_whole
from backbones.metric_writer import read_metrics
from experiments.base import Experiment
from experiments.run_dir import list_changes, read_experiment

FILE = "provenance.json"

ROOT = Path(__file__).parent.parent


def record_start(
    run_dir: Path, experiment: Experiment, dataset: Dataset, device: torch.device, *, step: int, changes: dict[str, str]
) -> None:
    """Add an entry to `provenance.json`, on rank 0.

    Args:
        run_dir: the run folder.
        experiment: what is run.
        dataset: its images and labels are hashed.
        device: where it computes.
        step: steps done before this start.
        changes: from `prepare_run_dir`.
    """
    if not distributed.is_main():
        return
    commit = _git("rev-parse", "HEAD")
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "step": step,
        "changes": changes,
        "seed": experiment.seed,
        "git_commit": commit,
        "git_dirty": commit and bool(_git("status", "--porcelain")),
        "device": device_name(device),
        "num_processes": distributed.world_size(),
        "num_threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "data_sha256": tree.sha256({"train": dataset.train, "test": dataset.test}),
        "packages": dict(sorted((each.name, each.version) for each in importlib.metadata.distributions())),
    }
    write_whole(run_dir / FILE, json.dumps([*read_starts(run_dir), entry], indent=2) + "\n")


def read_starts(run_dir: Path) -> list[dict[str, Any]]:
    """The entries of `provenance.json`, the first start first; none where there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    path = run_dir / FILE
    try:
        return json.loads(path.read_text()) if path.exists() else []
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); put it away to go on without its history") from error


def device_name(device: torch.device) -> str:
    """The GPU's own name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", ROOT, *args], capture_output=True, text=True)
    except OSError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def finished_experiment(run_dir: Path) -> Experiment:
    """The experiment of a run that has come to its end.

    Raises:
        InputError: there is no such run, or it has not.
    """
    experiment = read_experiment(run_dir)
    if experiment is None:
        raise InputError(f"there is no run in {run_dir}")
    if not (run_dir / "result.json").exists():
        raise InputError(f"the run in {run_dir} is not finished; --run-dir {run_dir} --resume auto goes on with it")
    return experiment


def compare_runs(before: Path, now: Path) -> tuple[bool, list[str]]:
    """Whether two finished runs ended in equal parameters, and what to know about it, line by line."""
    results = [json.loads((run_dir / "result.json").read_text()) for run_dir in (before, now)]
    equal = results[0]["params_sha256"] == results[1]["params_sha256"]
    lines = [f"the parameters are {'equal to the last bit' if equal else 'not equal'}"]
    lines += [f"params_sha256 {result['params_sha256']}" for result in results]
    if not equal:
        lines.append(_first_difference(before, now))
    settings = list_changes(*(finished_experiment(run_dir) for run_dir in (before, now)))
    lines += [f"other settings: {name}: {change}" for name, change in settings.items()]
    starts = [read_starts(run_dir) for run_dir in (before, now)]
    lines += [
        f"{before} went on from step {start['step']} with other settings: {name}: {change}"
        for start in starts[0]
        for name, change in start["changes"].items()
    ]
    if all(starts):
        lines += _other_circumstances(starts[0][-1], starts[1][-1])
    return equal, lines


def _first_difference(before: Path, now: Path) -> str:
    for one, other in zip(*(read_metrics(run_dir / "metrics.jsonl") for run_dir in (before, now)), strict=False):
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
