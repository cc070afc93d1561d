"""Which checkpoint is meant: `latest`, `best`, a step, or the path of one."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

from backbones.errors import InputError
from backbones.run.checkpoint.folder import MANIFEST, STATE, CorruptCheckpoint, Manifest, read_manifest
from backbones.run.run_dir import CHECKPOINTS, CONFIG

Which = Literal["auto", "latest", "best"] | int | Path
"""A checkpoint: the newest intact one or none, the latest, the best, that of a step, or one elsewhere."""


def parse_which(text: str) -> Which:
    """A checkpoint as the command line names it: `auto`, `latest`, `best`, a step, or a path."""
    if text in ("auto", "latest", "best"):
        return cast(Which, text)
    return int(text) if text.isdecimal() else Path(os.path.expanduser(text))


def parse_saved(text: str) -> Which:
    """A checkpoint of a run as `--checkpoint` names it.

    Raises:
        InputError: it is not `latest`, `best` or a step.
    """
    which = parse_which(text)
    if which == "auto" or isinstance(which, Path):
        raise InputError(f"--checkpoint is {text!r}; it must be latest, best or a step")
    return which


def list_steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, in ascending order."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal() and path.is_dir())


def read_manifests(folder: Path) -> dict[int, Manifest | None]:
    """Step -> the manifest of each complete checkpoint in a folder; None where it cannot be read."""
    manifests: dict[int, Manifest | None] = {}
    for step in list_steps(folder):
        try:
            manifests[step] = read_manifest(folder / str(step))
        except CorruptCheckpoint:
            manifests[step] = None
    return manifests


def best_step(manifests: Mapping[int, Manifest | None]) -> int | None:
    """The step of the best of these checkpoints, the latest among equals; None if none that can be read was evaluated.

    The metric is the one that the latest configuration names as `best`: the lowest `loss`, or the highest of another.
    """
    readable = [manifest for manifest in manifests.values() if manifest is not None]
    if not readable:
        return None
    metric = readable[-1].experiment.get("best", "top1")
    sign = -1 if metric == "loss" else 1
    values = [(sign * manifest.metrics.get(metric, math.nan), manifest.step) for manifest in readable]
    return max(((value, step) for value, step in values if not math.isnan(value)), default=(None, None))[1]


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that wrote a checkpoint, also for one in `superseded/`."""
    folder = Path(os.path.abspath(checkpoint))  # not `resolve`: its folder may be a link to another disk
    return next((parent.parent for parent in folder.parents if parent.name == CHECKPOINTS), folder.parent.parent)


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint is in, for what a command writes.

    Raises:
        InputError: it is in none, as where it was copied.
    """
    folder = run_of(checkpoint)
    if not (folder / CONFIG).exists():
        raise InputError(f"{checkpoint} is in no run folder; name by --out where to write")
    return folder


def find_checkpoint(path: Path, which: Which = "latest") -> Path:
    """The folder of one checkpoint.

    `path` is a run folder, or the checkpoint itself; if `which` is a path, it replaces `path`.

    Raises:
        InputError: there is no such checkpoint.
    """
    path = which if isinstance(which, Path) else path
    if path.name == CHECKPOINTS:
        path = path.parent
    if (path / MANIFEST).is_file() or (path / STATE).is_dir():  # without a manifest it is reported as corrupt
        if which == "best" or isinstance(which, int):
            raise InputError(f"{path} is one checkpoint already; name its run folder to choose {which} of it")
        return path
    if path.parent.name == CHECKPOINTS and path.name.isdecimal() and not path.exists():
        path, which = run_of(path), int(path.name)
    folder = path / CHECKPOINTS
    steps = list_steps(folder)
    if not steps:
        raise InputError(f"there is no checkpoint in {folder}; name a run that has one, or train one first")
    if which == "best":
        manifests = read_manifests(folder)
        if damaged := [step for step, manifest in manifests.items() if manifest is None]:
            raise CorruptCheckpoint(
                f"which checkpoint in {folder} is the best is not known, since {join_steps(damaged)} cannot be read; "
                f"choose latest or a step: {join_steps(steps)}"
            )
        step = best_step(manifests)
        if step is None:
            raise InputError(f"no checkpoint in {folder} was evaluated; choose latest or a step: {join_steps(steps)}")
        return folder / str(step)
    step = which if isinstance(which, int) else steps[-1]
    if step not in steps:
        raise InputError(
            f"there is no checkpoint {step} in {folder}; choose latest, best or a step: {join_steps(steps)}"
        )
    return folder / str(step)


def join_steps(steps: list[int]) -> str:
    """The steps as text: `5, 10, 15`."""
    return ", ".join(str(step) for step in steps) or "none"
