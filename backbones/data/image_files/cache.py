"""Files that are kept between runs: where they are, how they are replaced, and when they are out of date."""

import errno
import hashlib
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)
"""What numpy raises for a damaged file of arrays."""

Stamp = tuple[int, int, int]
"""Modification time in nanoseconds, size in bytes, and mode of a file or folder."""
Stamps = dict[str, Stamp]
"""Path -> stamp, before it was read."""


def stamp(path: Path | str | int) -> Stamp:
    """What changes when a file is written to or becomes readable, or a folder gets or loses an entry."""
    try:
        status = os.stat(path)
    except FileNotFoundError:  # a link to a disk that is not mounted
        return 0, 0, 0
    return status.st_mtime_ns, status.st_size, status.st_mode


def cache_path(path: Path, kind: str, suffix: str) -> Path:
    """Where something about the data set at `path` is kept between runs: a name made of the path and of where it leads,
    since a link may later lead elsewhere."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "backbones"
    except RuntimeError as error:  # a user without an entry in the table of users
        reason = "there is no home folder; set XDG_CACHE_HOME to a folder for what is kept between runs"
        raise FileNotFoundError(errno.ENOENT, reason, "~") from error
    names = os.fsencode(path.absolute()) + b"\0" + os.fsencode(path.resolve())
    return home / f"{kind}-{hashlib.sha256(names).hexdigest()[:16]}.{suffix}"


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that replaces `path` at the end of the block, unless an error is raised; several processes may do so.

    What a killed process left is deleted a day later.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    delete_leftovers(path.parent.glob(f"{path.stem}-tmp-*"))
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f"{path.stem}-tmp-", suffix=path.suffix, delete=False
    ) as temporary:
        try:
            yield temporary
            temporary.flush()
            os.replace(temporary.name, path)
        except BaseException:
            os.unlink(temporary.name)
            raise


def delete_leftovers(paths: Iterable[Path]) -> None:
    """Delete the files and folders in which nothing was written for a day: killed processes have left them."""
    for path in paths:
        with suppress(OSError):  # another machine has deleted it
            if max(each.stat().st_mtime for each in (path, *path.rglob("*"))) < time.time() - 24 * 3600:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def with_filename(path: Path) -> Iterator[None]:
    """Add the path to errors of writing that lack it, as that of a full disk does."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
