"""Lists of image files: which there are, of which class, in which split.

N files of one split, K classes.
"""

import hashlib
import json
import os
import tempfile
import time
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

import backbones.distributed as distributed
from backbones.data.images import SUFFIXES
from backbones.errors import InputError

TEST_NAMES = ("test", "val", "validation", "valid")
"""Names of the split that is held out; of several the first one is taken."""

UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)
"""What numpy raises for a damaged file of arrays."""

Stamps = dict[str, tuple[int, int]]
"""Path -> modification time in nanoseconds and size in bytes, before it was read."""


class Names:
    """N strings in one piece of memory, which a million of them need no more of than their letters."""

    def __init__(self, text: bytes, ends: np.ndarray) -> None:
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """From strings, which may be file names of any encoding."""
        encoded = [os.fsencode(name) for name in names]
        return cls(b"".join(encoded), np.cumsum([len(each) for each in encoded], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(self.text[self.ends[i - 1] if i else 0 : self.ends[i]])

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


class Files(NamedTuple):
    """N encoded images."""

    names: Names
    """Path of each below `root`, or what it is called there."""
    labels: np.ndarray
    """[N] int64 in [0, K)."""
    root: str
    """The folder, or the one file, that they are in."""
    store: str | None = None
    """One file that holds the bytes of all; None for files of their own."""
    extents: np.ndarray | None = None
    """[N, 2] int64, where each begins in `store`, and how many bytes it has."""

    @property
    def size(self) -> int:
        """N."""
        return len(self.labels)

    def path_of(self, i: int) -> str:
        """Where file `i` is, or what to call it where one file holds all of them."""
        return os.path.join(self.root, self.names[i])

    def content(self, i: int) -> bytes:
        """The bytes of file `i`; OSError where it cannot be read."""
        if self.store is None or self.extents is None:
            with open(self.path_of(i), "rb", buffering=0) as file:
                return file.read()
        start, length = self.extents[i].tolist()
        return os.pread(_opened(self.store), length, start)

    def take(self, rows: np.ndarray) -> "Files":
        """Some of the files, by number [M] int64."""
        names = Names.of(self.names[i] for i in rows.tolist())
        extents = None if self.extents is None else self.extents[rows]
        return Files(names, self.labels[rows], self.root, self.store, extents)


@cache
def _opened(path: str) -> int:
    """A file, which this process opens once."""
    return os.open(path, os.O_RDONLY)


class Listing(NamedTuple):
    """All files of a data set."""

    class_names: tuple[str, ...]
    """K names."""
    splits: dict[str, Files]
    """`train` and `test`, or `all` where they are not split yet."""


def shown(name: str) -> str:
    """A file name as text that any terminal can print."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def list_tree(
    path: Path, names: Sequence[str], folders: Iterable[str], extents: Sequence[tuple[int, int]] | None = None
) -> Listing:
    """The files of a tree `train/CLASS/...` and `test/CLASS/...`, or of `CLASS/...`, in the order of their names.

    Args:
        path: the folder of the tree, or the file that holds it.
        names: paths in the tree; hidden files, and those that are no images by their suffix, are left out.
        folders: all folders of the tree, since one without images is a class too.
        extents: offset and length of each file, where one file holds all of them.

    Raises:
        InputError: there are no images, or a class of the test split is none of the training split.
    """
    tops = {name.partition("/")[0] for name in (*folders, *names)}
    test_names = [name for name in TEST_NAMES if name in tops]
    splits = {"train": "train", **dict.fromkeys(test_names[:1], "test")} if "train" in tops else {"": "all"}

    def place(name: str) -> tuple[str, str] | None:
        """The split and the class of a path; None outside of them."""
        parts = name.split("/") if "train" in tops else ["", *name.split("/")]
        return (splits[parts[0]], _class_name(parts[1])) if len(parts) > 2 and parts[0] in splits else None

    classes: dict[str, set[str]] = {split: set() for split in splits.values()}
    for folder in folders:
        if (found := place(f"{folder}/")) is not None:
            classes[found[0]].add(found[1])
    rows: dict[str, list[int]] = {split: [] for split in splits.values()}
    for i, name in enumerate(names):
        if is_image(name) and (found := place(name)) is not None:
            rows[found[0]].append(i)
            classes[found[0]].add(found[1])

    trained = classes.get("train", classes.get("all", set()))
    unknown = sorted(classes.get("test", set()) - trained)
    if unknown:
        raise InputError(
            f"{path}: there are test images of {shorten(unknown)}, and no training images of that class; "
            f"the training classes are {shorten(sorted(trained))}"
        )
    class_names = tuple(sorted(trained))
    number = {name: k for k, name in enumerate(class_names)}
    listing = Listing(class_names, {})
    for split, chosen in rows.items():
        chosen.sort(key=lambda i: names[i].split("/"))
        labels = np.array([number[place(names[i])[1]] for i in chosen], dtype=np.int64)  # type: ignore[index]
        files = Files(Names.of(names[i] for i in chosen), labels, str(path))
        if extents is not None:
            places = np.array([extents[i] for i in chosen], dtype=np.int64).reshape(-1, 2)
            files = files._replace(store=str(path), extents=places)
        listing.splits[split] = files
    _note_ignored(path, names, sum(map(len, rows.values())))
    return listing


def is_image(name: str) -> bool:
    """Whether a path is taken for an image file: by its suffix, and not hidden."""
    file = name.rpartition("/")[2]
    return file.lower().endswith(SUFFIXES) and not file.startswith(".")


@cache
def _class_name(folder: str) -> str:
    """The name of a class: the same for each way to encode its accents."""
    return unicodedata.normalize("NFC", shown(folder))


def shorten(names: Sequence[str], most: int = 8) -> str:
    """The first few of many names, for a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} others" if len(names) > most else "")


def _note_ignored(path: Path, names: Sequence[str], used: int) -> None:
    if used < len(names):
        others = sorted({os.path.splitext(name)[1] or "no suffix" for name in names if not is_image(name)})
        kinds = f", such as {shorten(others, 4)}" if others else ""
        distributed.print0(f"note: {len(names) - used} files of {path} are no images of a class{kinds}: not used")


def train_test(listing: Listing, path: Path, holdout: float | None) -> tuple[Files, Files]:
    """The training and the test files.

    Of a tree that is not split yet, the share `holdout` is held out: the files whose name has a hash below it, so that
    the others stay where they are when some are added.

    Raises:
        InputError: there are no images; or there are two splits and a `holdout`, or one split and none.
    """
    splits = listing.splits
    if not any(len(files.labels) for files in splits.values()):
        raise InputError(
            f"there are no images in {path}; wanted train/CLASS/* and test/CLASS/*, or CLASS/* and --data.holdout 0.1 "
            f"(files named {shorten(SUFFIXES, 20)})"
        )
    if "test" in splits and holdout is not None:
        raise InputError(f"{path} has a test split, and --data.holdout is {holdout}; leave it out")
    if "test" in splits:
        return splits["train"], splits["test"]
    if holdout is None:
        wanted = "a folder test or val beside train" if "train" in splits else "folders train and test"
        raise InputError(f"{path} has no test split; wanted {wanted}, or --data.holdout 0.1 to hold a tenth out")
    (files,) = splits.values()
    below = int(holdout * 2**64)
    hashes = (hashlib.blake2b(os.fsencode(name), digest_size=8).digest() for name in files.names)
    is_test = np.fromiter((int.from_bytes(each, "big") < below for each in hashes), bool, len(files.names))
    return files.take(np.flatnonzero(~is_test)), files.take(np.flatnonzero(is_test))


def stamp(path: Path | str) -> tuple[int, int]:
    """What changes when a file is written to, or a folder gets or loses an entry."""
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


def kept(path: Path, make: Callable[[], tuple[Listing, Stamps]]) -> Listing:
    """The listing of `path` from an earlier run, if nothing has changed since, else `make()`; on the main process.

    It is kept in $XDG_CACHE_HOME/backbones (~/.cache/backbones), if that can be written.
    """
    file = kept_path(path, "listing", "npz")
    with suppress(*UNREADABLE), file.open("rb") as opened, np.load(opened) as arrays:
        stored = json.loads(bytes(arrays["stamps"]))
        listing = _from_arrays(arrays)
        if all(list(stamp(each)) == value for each, value in stored.items()) and _is_complete(listing):
            return listing
    began = time.time_ns()
    listing, stamps = make()
    newest = max(time_ns for time_ns, _ in stamps.values())
    if newest < began - 2 * 10**9:  # else it may change once more without another time
        with suppress(OSError), replacing(file) as temporary:
            np.savez(temporary, allow_pickle=False, stamps=_bytes(stamps), **_to_arrays(listing))
    return listing


def kept_path(path: Path, kind: str, suffix: str) -> Path:
    """Where something about the data set at `path` is kept between runs."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "backbones"
    return home / f"{kind}-{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}.{suffix}"


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that replaces `path` at the end of the block, unless an error is raised; several processes may do so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, suffix=path.suffix, delete=False) as temporary:
        try:
            yield temporary
            temporary.flush()
            os.replace(temporary.name, path)
        except BaseException:
            os.unlink(temporary.name)
            raise


def _is_complete(listing: Listing) -> bool:
    """Whether the stores are as long as they must be."""
    stores = [files for files in listing.splits.values() if files.store is not None and files.extents is not None]
    return all(os.path.getsize(each.store) >= each.extents.sum(axis=1).max(initial=0) for each in stores)  # type: ignore


def _bytes(values: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(values).encode(), dtype=np.uint8)


def _to_arrays(listing: Listing) -> dict[str, np.ndarray]:
    places = {split: (files.root, files.store) for split, files in listing.splits.items()}
    arrays = {"about": _bytes([listing.class_names, places])}
    for split, files in listing.splits.items():
        arrays |= {
            f"{split}_names": np.frombuffer(files.names.text, dtype=np.uint8),
            f"{split}_ends": files.names.ends,
            f"{split}_labels": files.labels,
        }
        if files.extents is not None:
            arrays[f"{split}_extents"] = files.extents
    return arrays


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> Listing:
    class_names, places = json.loads(bytes(arrays["about"]))
    splits = {
        split: Files(
            Names(bytes(arrays[f"{split}_names"]), arrays[f"{split}_ends"]),
            arrays[f"{split}_labels"],
            root,
            store,
            arrays.get(f"{split}_extents"),
        )
        for split, (root, store) in places.items()
    }
    return Listing(tuple(class_names), splits)
