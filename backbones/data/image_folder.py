"""A folder of image files."""

import os
from functools import partial
from pathlib import Path

from tqdm import tqdm

import backbones.distributed as distributed
from backbones.data.files import image_files
from backbones.data.kept import Stamps, kept_listing, stamp
from backbones.data.listing import Listing, is_image, list_tree
from backbones.errors import InputError


def list_folder(root: Path) -> Listing:
    """All image files below `root`.

    Raises:
        InputError: it is no folder, cannot be read, or holds no images.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder; set --data.root to one that holds train/CLASS/* and test/CLASS/*")
    return kept_listing(root, "folder", lambda: _scan(root))


def _scan(root: Path) -> tuple[Listing, Stamps]:
    files: dict[str, list[str]] = {}
    stamps: Stamps = {}
    folders = [""]
    with tqdm(desc=f"listing {root}", unit=" files", disable=None if distributed.is_main() else True) as bar:
        for folder in folders:  # which grows while it is gone through
            path = os.path.join(root, folder)
            stamps[path] = stamp(path)
            files[folder] = []
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    # a suffix tells a file without asking the disk, a million times
                    if not is_image(entry.name) and entry.is_dir():
                        folders.append(f"{folder}/{entry.name}".removeprefix("/"))
                    else:
                        files[folder].append(entry.name)
            bar.update(len(files[folder]))
    return list_tree(root, files), stamps


image_folder = partial(image_files, list_folder)
