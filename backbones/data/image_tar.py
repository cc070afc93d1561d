"""A tree of image files in one uncompressed tar."""

import os
import tarfile
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath

import backbones.distributed as distributed
from backbones.data.image_files import image_files
from backbones.data.image_files.cache import Stamps, stamp
from backbones.data.image_files.listing import Listing, is_image, list_tree
from backbones.data.image_files.listing_cache import cached_listing
from backbones.errors import InputError

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
"""First bytes of a file -> how it is compressed."""


def list_tar(root: Path) -> Listing:
    """All image files in the tar `root`, which is gone through once; then each is read from where it is.

    Raises:
        InputError: it is not an uncompressed tar, or is cut short, or as `list_tree`.
    """
    if not root.is_file():
        raise InputError(f"{root} is not a file; set --data.root to a tar that holds train/CLASS/* and test/CLASS/*")
    return cached_listing(root, "tar", lambda: _scan(root))


def _scan(root: Path) -> tuple[Listing, Stamps]:
    stamps = {str(root): stamp(root)}
    with root.open("rb") as file:
        start = file.read(6)
    for magic, compression in COMPRESSED.items():
        if start.startswith(magic):
            raise InputError(f"{root} is compressed by {compression}, where no file can be read alone; unpack it first")
    extents: dict[str, tuple[int, int]] = {}  # of a name that occurs twice the last one counts, as for tar itself
    folders: set[str] = set()
    try:
        with tarfile.open(root, "r:") as tar:
            for member in distributed.progress(tar, f"listing {root}", unit=" files"):
                name = str(PurePosixPath(member.name))
                if member.isdir():
                    if not _is_hidden(name):
                        folders.add(name)
                elif not _is_hidden(name) and (member.issym() or (is_image(name) and member.issparse())):
                    raise InputError(
                        f"{name} in {root} is a symbolic link or a sparse file, which cannot be read from where it "
                        "is; make the tar anew: tar --dereference -cf, without --sparse"
                    )
                elif member.islnk():
                    extents[name] = extents[str(PurePosixPath(member.linkname))]
                elif member.isfile():
                    extents[name] = member.offset_data, member.size
            end = tar.offset  # where no further member was found
    except (tarfile.TarError, KeyError) as error:  # KeyError: a link to a file that is not before it
        raise InputError(f"{root} is not a tar, or is damaged ({error})") from error
    with root.open("rb") as file:
        file.seek(end)
        if file.read(512) != bytes(512):  # which ends a tar
            raise InputError(f"{root} is cut short, or is damaged at byte {end:,}; copy it again")
    # hidden files were read only because others may be hard links to them
    extents = {name: extent for name, extent in extents.items() if not _is_hidden(name)}
    top = _top(filter(is_image, extents))
    tree = {name.removeprefix(top): extent for name, extent in extents.items() if name.startswith(top)}
    beside = [PurePosixPath(name).name for name in extents if not name.startswith(top)]
    files = {"": beside, **{folder.removeprefix(top): [] for folder in folders if folder.startswith(top)}}
    for name in tree:
        folder, _, file_name = name.rpartition("/")
        files.setdefault(folder, []).append(file_name)
    return list_tree(root, files, tree), stamps


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _top(images: Iterable[str]) -> str:
    """The folder that holds the tree, where a tar has one: `photos/` of `photos/train/CLASS/1.jpg`."""
    folders = {PurePosixPath(name).parent for name in images}
    inside: dict[PurePosixPath, set[str]] = {}
    for folder in folders:
        for child, parent in pairwise([folder, *folder.parents]):
            inside.setdefault(parent, set()).add(child.name)
    # an image beside or above several folders of images is not one of a class
    parents = [folder for folder, children in inside.items() if len(children) > 1 or "train" in children]
    classes = folders - {each for parent in parents for each in (parent, *parent.parents)}
    shared = PurePosixPath(os.path.commonpath({str(each.parent) for each in classes} or {"."}))
    shared = shared.parent if shared.name == "train" else shared
    return "" if shared == PurePosixPath(".") else f"{shared}/"


image_tar = partial(image_files, list_tar)
