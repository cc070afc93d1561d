"""Listings of files are kept between runs, since a million files take a while to find."""

import json
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from backbones.data.image_files.cache import UNREADABLE, Stamps, cache_path, replacing, stamp
from backbones.data.image_files.listing import Files, Listing, Names

VERSION = 6
"""Of how files are listed: another one lists them anew."""


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
    try:
        file = cache_path(path, f"{kind}-{VERSION}", "npz")
    except FileNotFoundError:  # no home folder
        return make()[0]
    names = None if sources is None else {str(each.resolve()) for each in sources}
    with suppress(*UNREADABLE), file.open("rb") as opened, np.load(opened) as arrays:
        stored = json.loads(bytes(arrays["stamps"]))
        listing = _from_arrays(arrays)
        is_same = all(list(stamp(each)) == value for each, value in stored.items()) and names in (None, stored.keys())
        if is_same and all(each.version == each.version_now() for each in listing.splits.values()):
            return listing
    began = time.time_ns()
    listing, stamps = make()
    newest = max(time_ns for time_ns, *_ in stamps.values())
    if newest < began - 2 * 10**9:  # else a later change could leave the same time
        with suppress(OSError), replacing(file) as temporary:
            np.savez(temporary, allow_pickle=False, stamps=_bytes(stamps), **_to_arrays(listing))
    return listing


def _bytes(values: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(values).encode(), dtype=np.uint8)


def _to_arrays(listing: Listing) -> dict[str, np.ndarray]:
    stores = {split: (files.root, files.store, files.version_now()) for split, files in listing.splits.items()}
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
            version and tuple(version),
        )
        for split, (root, store, version) in stores.items()
    }
    return Listing(tuple(class_names), splits)
