"""Writing files that survive a killed process, a full disk and a power cut."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from backbones.errors import InputError


@contextmanager
def atomic_path(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Yield a temporary path. The file that is written there replaces `path` at the end, unless an error is raised.

    With `new` it replaces no file, and several processes may try to write the same one.

    Raises:
        InputError: with `new`, there is such a file at the end.
    """
    temporary = path.with_name(f"{path.stem}.{os.getpid() if new else 'tmp'}{path.suffix}")
    try:
        yield temporary
        sync(temporary)
        if new and path.exists():
            raise InputError(f"{path} was written by another process in the meantime; choose another --out")
        temporary.replace(path)
        sync_name(path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, text: str) -> None:
    """Write a file completely, or raise OSError and leave the previous one unchanged."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; restore it from a copy, or delete it") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged: it holds no object; restore it from a copy, or delete it")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file completely, or raise OSError and leave the previous one unchanged."""
    atomic_write(path, json_text(values, indent=2) + "\n")


def json_text(values: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Strict JSON, which every program can read: nan and inf at the top level become null."""
    strict = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
    return json.dumps(strict, indent=indent)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, from the page cache to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_name(path: Path) -> None:
    """Flush the new name of a file or folder, which a power cut could undo. Failing is no error: the name is there."""
    with suppress(OSError):
        sync(path.parent)


def discard(stream: TextIO) -> None:
    """Let go of stdout or stderr that cannot be written: what is printed from now on is lost, and no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Appender:
    """A file that grows by records. What could not be written is kept in memory, and written before the next record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: OSError | None = None
        """The error of the latest `write`; None if it wrote everything."""
        self._file = path.open("ab", buffering=0)  # nothing is lost in a buffer if the process dies
        self._unwritten = b""

    def write(self, record: bytes) -> None:
        """Append a record. A failing disk is not an error: see `error`."""
        self._unwritten += record
        self.error = None
        try:
            while self._unwritten:
                written = self._file.write(self._unwritten)
                self._unwritten = self._unwritten[written:]
        except OSError as error:
            self.error = error

    def close(self) -> None:
        """Try once more to write what is left, and close the file."""
        self.write(b"")
        self._file.close()
