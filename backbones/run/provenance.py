"""`provenance.json`: what a run was made with, one entry for each start, so that it can be reproduced."""

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

import backbones.distributed as distributed
import backbones.machine as machine
from backbones.data import Dataset
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.run.files import atomic_write
from backbones.torch_settings import torch_settings_kept

ROOT = Path(__file__).parent.parent.parent

PROVENANCE, INIT = "provenance.json", "init_sha256"


def record_start(
    run_dir: Path,
    experiment: Experiment,
    dataset: Dataset,
    device: torch.device,
    *,
    step: int,
    changes: dict[str, str],
    origin: Path | None = None,
    init_sha256: str | None = None,
) -> None:
    """Add an entry to `provenance.json`, and say if the images are not those of the last start.

    `step` steps were done before, `changes` are from `check_run_dir`, `origin` is the run that a new one continues, and
    `init_sha256` is the hash of the parameters before the first step.
    """
    environment = describe_environment(experiment, dataset, device)
    time, command = datetime.now(UTC).isoformat(timespec="seconds"), shlex.join(sys.argv)
    entry = {"time": time, "command": command, "step": step, "changes": changes, **environment}
    if init_sha256 is not None:
        entry[INIT] = init_sha256
    starts = read_starts(run_dir)
    before = starts
    if origin and not starts:
        with suppress(InputError, OSError):  # it is for a warning alone
            before = read_starts(origin)
    if before and before[-1].get("data_sha256", entry["data_sha256"]) != entry["data_sha256"]:
        distributed.warn0("the images or labels have changed since the last start; continuing with the new ones")
    atomic_write(run_dir / PROVENANCE, json.dumps([*starts, entry], indent=2) + "\n")


def describe_environment(experiment: Experiment, dataset: Dataset, device: torch.device) -> dict[str, Any]:
    """What may decide, beside the experiment, how sums are rounded: versions, device, processes, threads, data."""
    commit = _git("rev-parse", "HEAD")
    return {
        "seed": experiment.seed,
        "git_commit": commit,
        "git_dirty": commit and bool(_git("status", "--porcelain")),
        "device": device_name(device),
        "num_processes": distributed.world_size(),
        "num_threads": torch.get_num_threads(),
        "precision": machine.choose_precision(experiment.precision, device),
        "malloc": machine.describe_malloc(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "data_sha256": {"train": dataset.train.digest(), "test": dataset.test.digest()},
        "packages": _packages(),
    }


def list_environment_changes(starts: Sequence[dict[str, Any]], now: dict[str, Any]) -> list[str]:
    """A line for each difference between the environment now and at a start of a run, latest start first."""
    found: dict[str, str] = {}
    for start in reversed(starts):
        one, other = ({**each.get("packages", {}), **each} for each in (start, now))
        for name in sorted({*one, *other} - {"time", "command", "step", "changes", "packages", INIT}):
            if one.get(name) != other.get(name):
                after = f" after step {start['step']}" if start.get("step") else ""
                change = f"{name} {one.get(name)} -> {other.get(name)}"
                found.setdefault(change, f"environment changed{after}: {change}")
    return [*found.values()]


def list_init_changes(before: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> list[str]:
    """A line if two runs started from different parameters, as where a file of weights was replaced."""
    one, other = (starts[0].get(INIT) if starts else None for starts in (before, now))
    if one is None or other in (None, one):
        return []
    return [f"the parameters before the first step are others: {INIT} {one} -> {other}"]


def list_trained(starts: Sequence[dict[str, Any]], first: int, last: int) -> list[dict[str, Any]]:
    """The starts that have trained some of the steps from `first` to `last` that were not done again later."""
    ends = [min([last, *(each.get("step", 0) for each in starts[i + 1 :])]) for i in range(len(starts))]
    return [start for start, end in zip(starts, ends, strict=True) if end > max(first, start.get("step", 0))]


def list_resumes(name: str, starts: Sequence[dict[str, Any]], *, after: int = -1) -> list[str]:
    """A line on each time that the run called `name` was resumed with other settings, from steps later than `after`."""
    return [
        f"{name} was resumed from step {start.get('step')} with other settings: "
        + ", ".join(f"{option}: {change}" for option, change in changes.items())
        for start in starts
        if (changes := start.get("changes")) and start.get("step", 0) > after
    ]


@contextmanager
def recorded_threads(starts: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Compute in as many threads as the last of the starts did: their number decides how sums are rounded."""
    before = os.environ.get("OMP_NUM_THREADS")
    with torch_settings_kept():
        if starts and (num_threads := starts[-1].get("num_threads")):
            torch.set_num_threads(num_threads)
            os.environ.pop("OMP_NUM_THREADS", None)  # or set_num_threads would treat 1 thread as torchrun's default
        try:
            yield
        finally:
            if before is not None:
                os.environ["OMP_NUM_THREADS"] = before


def read_starts(run_dir: Path) -> list[dict[str, Any]]:
    """The entries of `provenance.json`, the first start first; none where there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    path = run_dir / PROVENANCE
    try:
        return json.loads(path.read_text()) if path.exists() else []
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); rename it to go on without its history") from error


@cache
def _packages() -> dict[str, str]:
    """Installed package -> version, of those whose metadata can be read."""
    found = ((each.name, each.version) for each in importlib.metadata.distributions())
    return dict(sorted((name, version) for name, version in found if name and version))


def device_name(device: torch.device) -> str:
    """The name of the GPU, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", "--no-optional-locks", "-C", ROOT, *args], capture_output=True, text=True)
    except OSError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None
