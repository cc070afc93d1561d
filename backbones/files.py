"""Files that are there whole or not at all, whenever the process dies or the power goes."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file, or leave the one of that name as it is."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    sync(temporary)
    temporary.replace(path)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names of a folder, is on the disk itself, not in the memory of the system."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
