"""Which checkpoint is meant: `latest`, `best`, a step, or the path of one."""

import math
from contextlib import suppress
from pathlib import Path

from backbones.checkpoint.folder import MANIFEST, Damaged, read_manifest
from backbones.errors import InputError


def is_path(which: str) -> bool:
    """Whether `which` is no word for a checkpoint of the run itself, and no step of it."""
    return which not in ("auto", "latest", "best") and not which.isdecimal()


def list_steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, rising."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal() and path.is_dir())


def best_step(folder: Path) -> int | None:
    """The step of the best checkpoint in a folder, the later of equals; None if none was evaluated.

    The metric is the one that the latest configuration names as `best`: the lowest for `loss`, else the highest.
    """
    manifests = []
    for step in list_steps(folder):
        with suppress(Damaged):  # whoever reads it will hear of it
            manifests.append(read_manifest(folder / str(step)))
    if not manifests:
        return None
    metric = manifests[-1].experiment.get("best", "top1")
    sign = -1 if metric == "loss" else 1
    values = [(sign * manifest.metrics.get(metric, math.nan), manifest.step) for manifest in manifests]
    return max(((value, step) for value, step in values if not math.isnan(value)), default=(None, None))[1]


def find_checkpoint(path: Path, which: str = "latest") -> Path:
    """The folder of one checkpoint.

    Args:
        path: a run folder, or the checkpoint itself.
        which: `latest`, `best` (by the metric that the run's configuration names) or a step, of a run.

    Raises:
        InputError: there is no such checkpoint.
    """
    if (path / MANIFEST).is_file():
        return path
    folder = path / "checkpoints"
    steps = list_steps(folder)
    if not steps:
        raise InputError(
            f"there is no checkpoint in {folder}; name a run that has one, or begin one with another --run-dir"
        )
    if which == "latest":
        return folder / str(steps[-1])
    if which == "best":
        step = best_step(folder)
        if step is None:
            raise InputError(f"no checkpoint in {folder} was evaluated; take latest, or a step: {join_steps(steps)}")
        return folder / str(step)
    if not which.isdecimal() or int(which) not in steps:
        raise InputError(f"there is no checkpoint {which} in {folder}; there are latest, best and {join_steps(steps)}")
    return folder / str(int(which))


def join_steps(steps: list[int]) -> str:
    """The steps as a list to read."""
    return ", ".join(str(step) for step in steps) or "none"
