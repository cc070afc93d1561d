"""One checkpoint on the disk: orbax's `state/`, a file for each leaf, and `manifest.json`: what they must be.

orbax alone restores a flipped bit as another number without a word, so the manifest holds a hash of every file, of
every leaf and of itself. The folder is written under another name and renamed when it is whole: no half is ever seen.
"""

import errno
import functools
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from backbones.checkpoint.arrays import Arrays, Leaf, describe
from backbones.errors import InputError
from backbones.files import sync

MANIFEST = "manifest.json"

TEMPORARY = ".tmp"
"""Ending of the name of a folder that is being written or deleted."""


class Manifest(NamedTuple):
    """What stands beside the state: pure data."""

    step: int
    metrics: dict[str, float]
    """Of the held-out samples after that step; empty if it was not evaluated."""
    experiment: dict[str, Any]
    """The configuration of the run."""
    average: dict[str, str] | None
    """`type` and `path` in the tree of the average that is evaluated in place of the parameters, if there is one."""
    leaves: dict[str, Leaf]
    files: dict[str, str]
    """Name in the folder -> SHA-256 of the file."""


class Checkpoint(NamedTuple):
    """One checkpoint, read and found whole."""

    path: Path
    manifest: Manifest
    arrays: Arrays


class Damaged(InputError):
    """A checkpoint is not what was written. The message names the file."""


@functools.cache
def import_orbax() -> ModuleType:
    """orbax, and with it jax, on the CPU; late, because reading a command line need not wait for it."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the GPU's memory belongs to torch
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what it would log, it raises too
    return ocp


def write_checkpoint(
    path: Path, arrays: Arrays, *, metrics: dict[str, float], experiment: dict[str, Any], average: dict[str, str] | None
) -> None:
    """Write a folder, or nothing.

    Args:
        path: the folder, which does not exist yet.
        arrays: from `to_arrays`.
        metrics: see `Manifest`.
        experiment: see `Manifest`.
        average: see `Manifest`; from `describe_average`.

    Raises:
        Exception: whatever orbax or the disk raises.
    """
    ocp = import_orbax()
    temporary = path.with_name(path.name + TEMPORARY)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        _check_space(temporary, arrays)
        # Without OCDBT a leaf has files of its own, which can be named when they are damaged. Compressing weights takes
        # twice the time and saves a twelfth of the bytes.
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(temporary.absolute() / "state", args=ocp.args.PyTreeSave(arrays))
        leaves = {name: describe(array) for name, array in arrays.items()}
        files = {str(file.relative_to(temporary)): _sha256(file) for file in _files(temporary)}
        manifest = Manifest(int(arrays["step"]), metrics, experiment, average, leaves, files)
        content = {**manifest._asdict(), "leaves": {name: leaf._asdict() for name, leaf in leaves.items()}}
        (temporary / MANIFEST).write_text(json.dumps({"manifest": content, "sha256": _sha256_of_json(content)}))
        for written in (*temporary.rglob("*"), temporary):
            sync(written)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _check_space(folder: Path, arrays: Arrays) -> None:
    """Raise OSError if the arrays would not fit, before orbax's many threads find out one by one."""
    block = 4096
    needed = sum(array.nbytes + 4 * block for array in arrays.values())  # two folders and two files beside the values
    free = shutil.disk_usage(folder).free
    if free < needed:
        reason = f"{os.strerror(errno.ENOSPC)}, {needed / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB free"
        raise OSError(errno.ENOSPC, reason)


def delete_checkpoint(path: Path) -> None:
    """Delete a folder, if there is one; renamed first, so that none is ever seen half deleted."""
    if path.exists():
        temporary = path.with_name(path.name + "-deleted" + TEMPORARY)
        path.rename(temporary)
        shutil.rmtree(temporary, ignore_errors=True)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        Damaged: it is absent, or not what was written.
    """
    try:
        document = json.loads((path / MANIFEST).read_text())
        content = document["manifest"]
        if document["sha256"] != _sha256_of_json(content):
            raise ValueError("its hash is another")
        manifest = Manifest(**content)
        return manifest._replace(leaves={name: Leaf(**leaf) for name, leaf in manifest.leaves.items()})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path, MANIFEST, error) from error


def read_checkpoint(path: Path) -> Checkpoint:
    """All of a folder, after every file and every leaf was compared with its hash.

    Raises:
        Damaged: one of them is absent, or not what was written.
    """
    manifest = read_manifest(path)
    for name, expected in manifest.files.items():
        try:
            found = _sha256(path / name)
        except OSError as error:
            raise _damaged(path, name, error) from error
        if found != expected:
            raise _damaged(path, name, f"its hash is {found[:12]}..., expected {expected[:12]}...")
    ocp = import_orbax()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(path.absolute() / "state", args=ocp.args.PyTreeRestore())
    arrays = {name: restored[name] for name in manifest.leaves}  # in the tree's order
    for name, array in arrays.items():
        if describe(array) != manifest.leaves[name]:
            raise _damaged(path, f"state/{name}", "its values are not those that were saved")
    return Checkpoint(path, manifest, arrays)


def _damaged(path: Path, name: str, reason: object) -> Damaged:
    reason = reason.strerror if isinstance(reason, OSError) else reason
    return Damaged(f"the checkpoint {path} is damaged: {name}: {reason}")


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _sha256_of_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
