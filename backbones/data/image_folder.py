"""A folder of image files."""

import os
from functools import partial
from pathlib import Path

import backbones.distributed as distributed
from backbones.data.image_files import image_files
from backbones.data.image_files.cache import Stamps, stamp
from backbones.data.image_files.listing import Listing, is_image, list_tree
from backbones.data.image_files.listing_cache import cached_listing
from backbones.errors import InputError


def list_folder(root: Path) -> Listing:
    """All image files below `root`.

    Raises:
        InputError: it is not a folder, or a class of the test split is none of the training split.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; set --data.root to one that holds train/CLASS/* and test/CLASS/*")
    return cached_listing(root, "folder", lambda: _scan(root))


def _scan(root: Path) -> tuple[Listing, Stamps]:
    files: dict[str, list[str]] = {}
    stamps: Stamps = {}
    folders = [""]
    with distributed.progress(desc=f"listing {root}", unit=" files") as bar:
        for folder in folders:  # which grows while it is gone through
            path = os.path.join(root, folder)
            stamps[path] = stamp(path)
            files[folder] = []
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    # a link that is named like an image is not followed to see what it is
                    if entry.is_dir(follow_symlinks=False) or (not is_image(entry.name) and entry.is_dir()):
                        if not (entry.is_symlink() and os.path.realpath(entry) in _above(root, folder)):
                            folders.append(f"{folder}/{entry.name}".removeprefix("/"))
                    else:
                        files[folder].append(entry.name)
                        if entry.is_symlink() and not is_image(entry.name) and not os.path.exists(entry.path):
                            stamps[entry.path] = stamp(entry.path)  # it may become a folder
            bar.update(len(files[folder]))
    return list_tree(root, files), stamps


def _above(root: Path, folder: str) -> set[str]:
    """The real paths of a folder and of all above it, up to `root`: following a link to one of them never ends."""
    path = root / folder
    return {os.path.realpath(each) for each in (path, *path.parents) if each.is_relative_to(root)}


image_folder = partial(image_files, list_folder)
