"""One checkpoint on the disk: orbax's `state/`, a file for each leaf, and `manifest.json`, which says what they hold.

orbax alone restores a flipped bit silently as another number, so the manifest holds a hash of every file, of every leaf
and of itself. The folder is written under a temporary name and renamed when it is complete.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from backbones.data import DataInfo
from backbones.errors import InputError
from backbones.experiment import VERSION
from backbones.run.checkpoint.arrays import Arrays, Leaf, describe_leaf
from backbones.run.files import sync, sync_name

MANIFEST, STATE = "manifest.json", "state"

TEMPORARY = ".tmp"
"""Ending of the name of a folder that is being written or deleted."""


class Manifest(NamedTuple):
    """What is stored beside the state, as JSON."""

    step: int
    metrics: dict[str, float]
    """Of the held-out samples after that step; empty if it was not evaluated."""
    experiment: dict[str, Any]
    """The configuration of the run."""
    info: DataInfo
    """What the model must know of its data to predict."""
    since_log: dict[str, Any]
    """Sums of the training metrics since the last line of the log."""
    recent_losses: Sequence[float] = ()
    """Of the latest steps, by which a spike of the next ones is found."""
    version: str = VERSION
    """Of the format."""
    leaves: dict[str, Leaf] = {}  # noqa: RUF012
    files: dict[str, str] = {}  # noqa: RUF012
    """Name in the folder -> SHA-256 of the file."""


class Checkpoint(NamedTuple):
    """One checkpoint, read and verified."""

    path: Path
    manifest: Manifest
    arrays: Arrays


class CorruptCheckpoint(InputError):
    """A checkpoint is not what was written. The message names the file."""


def write_checkpoint(path: Path, arrays: Arrays, manifest: Manifest) -> None:
    """Write a new folder completely, or raise OSError and leave nothing.

    The `leaves` and `files` of the manifest are filled in here.
    """
    from backbones.run.checkpoint.orbax_state import write_state

    temporary = path.with_name(path.name + TEMPORARY)
    try:
        temporary.mkdir()
        _check_space(temporary, arrays)
        write_state(temporary / STATE, arrays)
        written = sorted(file for file in temporary.rglob("*") if file.is_file())
        content = {
            **manifest._asdict(),
            "info": manifest.info._asdict(),
            "leaves": {name: describe_leaf(array)._asdict() for name, array in arrays.items()},
            "files": {str(file.relative_to(temporary)): _sha256(file) for file in written},
        }
        (temporary / MANIFEST).write_text(json.dumps({"manifest": content, "sha256": _sha256_of_json(content)}))
        with ThreadPoolExecutor(8) as pool:  # one after the other takes a disk five to ten times as long
            list(pool.map(sync, (*temporary.rglob("*"), temporary)))
        temporary.rename(path)
        sync_name(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _check_space(folder: Path, arrays: Arrays) -> None:
    """Raise OSError if the arrays would not fit, before they fill up a disk that others write to as well."""
    block = 4096
    needed = sum(array.nbytes + 4 * block for array in arrays.values())  # two folders and two files beside the values
    free = shutil.disk_usage(folder).free
    if free < needed:
        reason = f"{os.strerror(errno.ENOSPC)} ({needed / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free)"
        raise OSError(errno.ENOSPC, reason)


def delete_checkpoint(path: Path) -> None:
    """Delete a folder if it exists. It is renamed first: a partly deleted folder is not a checkpoint."""
    if path.exists():
        temporary = path.with_name(path.name + "-deleted" + TEMPORARY)
        path.rename(temporary)
        shutil.rmtree(temporary, ignore_errors=True)


def delete_temporary(folder: Path) -> None:
    """Delete what killed processes and failed saves have left in a folder of checkpoints, as far as the disk allows."""
    for path in folder.glob(f"*{TEMPORARY}"):
        shutil.rmtree(path, ignore_errors=True)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        CorruptCheckpoint: it is missing, or not what was written.
        InputError: it is of another version.
    """
    try:
        document = json.loads((path / MANIFEST).read_text())
        content = document["manifest"]
        if document["sha256"] != _sha256_of_json(content):
            raise ValueError("its hash does not match")
        version = content.get("version", "0.1")
        if version == VERSION:
            info = DataInfo.from_json(content["info"])
            leaves = {name: Leaf(**leaf) for name, leaf in content["leaves"].items()}
            return Manifest(**{**content, "info": info, "leaves": leaves})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _corrupt(path, MANIFEST, error) from error
    raise InputError(f"the checkpoint {path} was written by version {version}, and this is {VERSION}")


def read_checkpoint(path: Path) -> Checkpoint:
    """All of a folder, with every file and every leaf compared with its hash.

    Raises:
        CorruptCheckpoint: one of them is missing, or not what was written.
    """
    from backbones.run.checkpoint.orbax_state import read_state

    manifest = read_manifest(path)
    for name, expected in manifest.files.items():
        try:
            found = _sha256(path / name)
        except OSError as error:
            raise _corrupt(path, name, error) from error
        if found != expected:
            raise _corrupt(path, name, f"its hash is {found[:12]}..., expected {expected[:12]}...")
    restored = read_state(path / STATE)
    arrays = {name: restored[name] for name in manifest.leaves}  # in the order of the tree
    for name, array in arrays.items():
        if describe_leaf(array) != manifest.leaves[name]:
            raise _corrupt(path, f"state/{name}", "its values are not those that were saved")
    return Checkpoint(path, manifest, arrays)


def _corrupt(path: Path, name: str, reason: object) -> CorruptCheckpoint:
    reason = reason.strerror if isinstance(reason, OSError) else reason
    return CorruptCheckpoint(f"the checkpoint {path} is corrupt: {name}: {reason}")


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _sha256_of_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
