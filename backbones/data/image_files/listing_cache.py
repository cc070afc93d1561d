"""What is kept between runs: listings, since a million files take a while to find, and what they are made from."""

import hashlib
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from backbones.data.image_files.listing import Files, Listing, Names

VERSION = 5
"""Of how files are listed: another one lists them anew."""

UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)
"""What numpy raises for a damaged file of arrays."""

Stamp = tuple[int, int, int]
"""Modification time in nanoseconds, size in bytes, and mode of a file or folder."""
Stamps = dict[str, Stamp]
"""Path -> stamp, before it was read."""


def stamp(path: Path | str) -> Stamp:
    """What changes when a file is written to or becomes readable, or a folder gets or loses an entry."""
    try:
        status = os.stat(path)
    except FileNotFoundError:  # a link to a disk that is not mounted
        return 0, 0, 0
    return status.st_mtime_ns, status.st_size, status.st_mode


def cached_listing(
    path: Path, kind: str, make: Callable[[], tuple[Listing, Stamps]], sources: Collection[Path] | None = None
) -> Listing:
    """The listing of `path` from an earlier run, if nothing has changed since, else `make()`.

    It is kept in $XDG_CACHE_HOME/backbones (~/.cache/backbones), if that can be written.

    Args:
        path: file or folder.
        kind: of data set: a folder may hold images in several ways.
        make: lists it, and gives the stamps of what was read for that.
        sources: the files that it is made from now, where new ones would change no stamp.
    """
    file = cache_path(path, f"{kind}-{VERSION}", "npz")
    names = None if sources is None else {str(each.resolve()) for each in sources}
    with suppress(*UNREADABLE), file.open("rb") as opened, np.load(opened) as arrays:
        stored = json.loads(bytes(arrays["stamps"]))
        listing = _from_arrays(arrays)
        is_same = all(list(stamp(each)) == value for each, value in stored.items()) and names in (None, stored.keys())
        if is_same and _is_complete(listing):
            return listing
    began = time.time_ns()
    listing, stamps = make()
    newest = max(time_ns for time_ns, *_ in stamps.values())
    if newest < began - 2 * 10**9:  # else a later change could leave the same time
        with suppress(OSError), replacing(file) as temporary:
            np.savez(temporary, allow_pickle=False, stamps=_bytes(stamps), **_to_arrays(listing))
    return listing


def cache_path(path: Path, kind: str, suffix: str) -> Path:
    """Where something about the data set at `path` is kept between runs: a link to it may be set to another."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "backbones"
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
def named_after(path: Path) -> Iterator[None]:
    """Let errors of writing say where: a full disk does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _is_complete(listing: Listing) -> bool:
    """Whether the stores are as long as they must be."""
    stores = [files for files in listing.splits.values() if files.store is not None and files.extents is not None]
    return all(os.path.getsize(each.store) >= each.extents.sum(axis=1).max(initial=0) for each in stores)  # type: ignore


def _bytes(values: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(values).encode(), dtype=np.uint8)


def _to_arrays(listing: Listing) -> dict[str, np.ndarray]:
    stores = {split: (files.root, files.store) for split, files in listing.splits.items()}
    arrays = {"about": _bytes([listing.class_names, stores])}
    for split, files in listing.splits.items():
        arrays[f"{split}_names"], arrays[f"{split}_ends"] = files.names.to_arrays()
        arrays[f"{split}_labels"] = files.labels
        if files.extents is not None:
            arrays[f"{split}_extents"] = files.extents
    return arrays


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> Listing:
    class_names, stores = json.loads(bytes(arrays["about"]))
    splits = {
        split: Files(
            Names.from_arrays(arrays[f"{split}_names"], arrays[f"{split}_ends"]),
            arrays[f"{split}_labels"],
            root,
            store,
            arrays.get(f"{split}_extents"),
        )
        for split, (root, store) in stores.items()
    }
    return Listing(tuple(class_names), splits)
