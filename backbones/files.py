"""Files that outlive a process that dies, a disk that fills up and a power cut."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write a file, or leave the one of that name as it is: never half of it.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(text)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(values: Mapping[str, Any], *, indent: int | None = None) -> str:
    """JSON as all programs read it: a number that is not finite becomes null."""
    strict = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
    return json.dumps(strict, indent=indent)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names of a folder, is on the disk itself, not in the memory of the system."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Appender:
    """A file that grows record by record. What the disk does not take is kept, and written before what comes next.

    Args:
        path: the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: OSError | None = None
        """Why the latest `write` did not write all; None if it did."""
        self._file = path.open("ab", buffering=0)  # what was written is in the file when the process dies
        self._left = b""

    def write(self, record: bytes) -> None:
        """Add to the end of the file; never raises."""
        self._left += record
        self.error = None
        try:
            while self._left:
                written = self._file.write(self._left)
                self._left = self._left[written:]
        except OSError as error:
            self.error = error

    def close(self) -> None:
        """Try a last time to write what is left, and close the file."""
        self.write(b"")
        self._file.close()
