"""Lists of image files: which there are, of which class, in which split.

N files of one split, K classes.
"""

import hashlib
import os
import unicodedata
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

import backbones.distributed as distributed
from backbones.data.image_files.cache import stamp
from backbones.data.image_files.images import SUFFIXES
from backbones.errors import InputError, shorten

TEST_NAMES = ("test", "val", "validation", "valid")
"""Names of the split that is held out; of several the first one is taken."""

LIKE_SPLITS = {"train", "training", "testing", *TEST_NAMES}
"""Names of folders, in any case, that look like splits: several of them beside each other are hardly classes."""


class Names:
    """N strings in one piece of memory: a million of them need no more than their letters."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._text, self._ends = bytearray(), array("q")
        self.extend(names)

    def extend(self, names: Iterable[str]) -> None:
        """Add some, which may be file names of any encoding."""
        for name in names:
            self._text += os.fsencode(name)
            self._ends.append(len(self._text))

    def to_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The letters [M] uint8, and where each name ends in them, [N] int64."""
        return np.array(self._text, dtype=np.uint8), np.array(self._ends, dtype=np.int64)

    @classmethod
    def from_arrays(cls, text: np.ndarray, ends: np.ndarray) -> "Names":
        """Undo `to_arrays`."""
        made = cls()
        made._text, made._ends = bytearray(text), array("q", ends.tobytes())
        return made

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(bytes(self._text[self._ends[i - 1] if i else 0 : self._ends[i]]))

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
    version: tuple[int, ...] | None = None
    """Of `store`: it may be replaced by another one while this process lives."""

    @property
    def size(self) -> int:
        """N."""
        return len(self.labels)

    def version_now(self) -> tuple[int, ...] | None:
        """The version of `store` as it is on the disk now; None without one."""
        return None if self.store is None else version_of(self.store)

    def path_of(self, i: int) -> str:
        """Where file `i` is, or what to call it where one file holds all of them."""
        return os.path.join(self.root, self.names[i])

    def content(self, i: int) -> bytes:
        """The bytes of file `i`; OSError where it cannot be read."""
        if self.store is None or self.extents is None:
            with open(self.path_of(i), "rb", buffering=0) as file:
                return file.read()
        start, length = self.extents[i].tolist()
        return os.pread(_opened(self.store, self.version), length, start)

    def equals(self, other: "Files") -> bool:
        """Whether they have the same names and labels, and the same extents where both have any."""
        ours, theirs = ([*each.names.to_arrays(), each.labels] for each in (self, other))
        if self.extents is not None and other.extents is not None:
            ours, theirs = [*ours, self.extents], [*theirs, other.extents]
        return all(np.array_equal(one, another) for one, another in zip(ours, theirs, strict=True))

    def take(self, rows: np.ndarray) -> "Files":
        """Some of the files, by number [M] int64."""
        names = Names(self.names[i] for i in rows.tolist())
        extents = None if self.extents is None else self.extents[rows]
        return self._replace(names=names, labels=self.labels[rows], extents=extents)


@cache
def _opened(path: str, version: tuple[int, ...] | None) -> int:
    """A file, which this process opens once."""
    file = os.open(path, os.O_RDONLY)
    if version is not None and version_of(file) != version:
        os.close(file)
        raise InputError(f"{path} has changed since the run began; start it again with --resume")
    return file


def version_of(store: str | int) -> tuple[int, ...]:
    """What differs between two files of one name, also where a link was set to a copy of the same time and size."""
    return (*stamp(store), os.stat(store).st_ino)


class Listing(NamedTuple):
    """All files of a data set."""

    class_names: tuple[str, ...]
    """K names."""
    splits: dict[str, Files]
    """`train` and `test`, or `all` where they are not split yet."""


def printable(name: str) -> str:
    """A file name as text that any terminal can print."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def list_tree(
    path: Path, files: Mapping[str, Sequence[str]], extents: Mapping[str, tuple[int, int]] | None = None
) -> Listing:
    """The image files of a tree `train/CLASS/...` and `test/CLASS/...`, or of `CLASS/...`.

    They are in the order of their folders, and in each of their names.

    Args:
        path: the folder of the tree, or the file that holds it.
        files: folder in the tree -> names of the files in it. A folder without any can be a class too.
        extents: path in the tree -> offset and length, where one file holds all of them.

    Raises:
        InputError: a class of the test split is none of the training split, or splits have other names.
    """
    tops = {folder.partition("/")[0] for folder in files}
    # else `train` is a class like the others
    is_split = "train" in tops and any(each in TEST_NAMES or each.startswith("train/") for each in (*tops, *files))
    with_folders = {folder.partition("/")[0] for folder in files if "/" in folder}  # `test/*.jpg` has no labels
    splits = choose_splits(path, with_folders) if is_split else {"": "all"}
    named_like = sorted(top for top in tops if top.casefold() in LIKE_SPLITS)
    is_named_right = {"train"} <= {*named_like} <= {"train", *TEST_NAMES}
    if len(named_like) > 1 and "test" not in splits.values() and not is_named_right:
        raise InputError(f"{path} has the folders {' and '.join(named_like)}; rename them to train and test")
    if not is_split:
        _check_no_splits_inside(path, files)
    split_and_class = {}  # by folder
    for folder in sorted(files, key=lambda folder: folder.split("/")):
        top, *rest = folder.split("/") if is_split else ["", *folder.split("/")]
        if rest and rest != [""] and top in splits:
            split_and_class[folder] = splits[top], class_name(rest[0])
    trained = {name for split, name in split_and_class.values() if split != "test"}
    tested = {
        name
        for folder, (split, name) in split_and_class.items()
        if split == "test" and any(map(is_image, files[folder]))
    }
    number = number_classes(path, sorted(trained), tested)
    listing = Listing(tuple(number), {})
    for split in splits.values():
        names, labels, found = Names(), array("q"), array("q")
        for folder in (folder for folder, (of, _) in split_and_class.items() if of == split):
            images = sorted(filter(is_image, files[folder]))
            if not images:
                continue
            names.extend(f"{folder}/{name}" for name in images)
            labels.extend([number[split_and_class[folder][1]]] * len(images))
            if extents is not None:
                found.extend(value for name in images for value in extents[f"{folder}/{name}"])
        table = None if extents is None else np.array(found, dtype=np.int64).reshape(-1, 2)
        store = None if extents is None else str(path)
        listing.splits[split] = Files(names, np.array(labels, dtype=np.int64), str(path), store, table)
    others = ({*TEST_NAMES} & with_folders) - splits.keys() if is_split else ()  # which `choose_splits` has named
    looked_at = {folder: names for folder, names in files.items() if folder.partition("/")[0] not in others}
    _note_ignored(path, looked_at, sum(each.size for each in listing.splits.values()))
    return listing


def _check_no_splits_inside(path: Path, files: Mapping[str, Sequence[str]]) -> None:
    """Raise InputError if there are folders like splits in every class."""
    inside: dict[str, set[str]] = {}  # class -> names of the folders in it
    for folder, names in files.items():
        if folder and any(map(is_image, names)):
            top, _, rest = folder.partition("/")
            inside.setdefault(top, set()).add(rest.partition("/")[0].casefold())
    like_splits = set().union(*inside.values()) & LIKE_SPLITS
    if len(like_splits) > 1 and all(each & LIKE_SPLITS for each in inside.values()):
        raise InputError(
            f"{path} has the folders {' and '.join(sorted(like_splits))} in {shorten(sorted(inside))}; wanted "
            "train/CLASS/* and test/CLASS/*: move them, or set --data.root to the folder that holds both"
        )


def choose_splits(path: Path, names: Collection[str]) -> dict[str, str]:
    """What a split is called -> `train` or `test`; of several test splits the first one of `TEST_NAMES` counts."""
    tests = [name for name in TEST_NAMES if name in names]
    if len(tests) > 1:
        distributed.print0(f"note: {path} has the splits {', '.join(tests)}: {tests[0]} is held out, the rest not used")
    return {"train": "train", **dict.fromkeys(tests[:1], "test")}


def number_classes(path: Path, class_names: Iterable[str], tested: set[str]) -> dict[str, int]:
    """Class -> its number, in the given order.

    Raises:
        InputError: there are test images of a class that has no training images.
    """
    number = {name: k for k, name in enumerate(class_names)}
    if unknown := sorted(tested.difference(number)):
        raise InputError(
            f"{path}: there are test images of {shorten(unknown)}, and no training images of that class; "
            f"the training classes are {shorten(sorted(number))}"
        )
    return number


def is_image(name: str) -> bool:
    """Whether a file is an image by its suffix, and not hidden."""
    file = name.rpartition("/")[2]
    return file.lower().endswith(SUFFIXES) and not file.startswith(".")


@cache
def class_name(folder: str) -> str:
    """The name of a class: the same for each way to encode its accents."""
    return unicodedata.normalize("NFC", printable(folder))


def _note_ignored(path: Path, files: Mapping[str, Sequence[str]], used: int) -> None:
    number = sum(map(len, files.values()))
    if used < number:
        others = (name for names in files.values() for name in names if not is_image(name))
        kinds = sorted({printable(os.path.splitext(name)[1]) or "no suffix" for name in others})
        listed = f" ({shorten(kinds, 4)})" if kinds else ""
        where = printable(str(path))
        distributed.print0(f"note: {number - used} files in {where} are not images of a class{listed}: ignored")


def train_test(listing: Listing, path: Path, holdout: float | None) -> tuple[Files, Files]:
    """The training and the test files.

    Of a tree that is not split yet, the share `holdout` is held out: the files whose name has a hash below it, so that
    the others stay where they are when some are added. Rows of parquet that share a name are told apart by length.

    Raises:
        InputError: there are no images; or there are two splits and a `holdout`, or one split and none.
    """
    splits = listing.splits
    if not any(len(files.labels) for files in splits.values()):
        raise InputError(
            f"there are no images in {path}; wanted train/CLASS/* and test/CLASS/*, or CLASS/* and --data.holdout 0.1 "
            f"(files named {shorten(SUFFIXES, 20)})"
        )
    if splits.keys() not in ({"train", "test"}, {"train"}, {"all"}):
        raise InputError(f"{path} has the splits {', '.join(splits)}; wanted train and test, or one that is not split")
    if "test" in splits and holdout is not None:
        raise InputError(f"{path} has a test split, and --data.holdout is {holdout}; leave it out")
    if "test" in splits:
        for name, files in splits.items():
            if not files.size:
                raise InputError(f"{path}: the {name} split has no images; wanted one at least")
        return splits["train"], splits["test"]
    if holdout is None:
        wanted = "a folder test or val beside train" if "train" in splits else "folders train and test"
        raise InputError(f"{path} has no test split; wanted {wanted}, or --data.holdout 0.1 to hold a tenth out")
    (files,) = splits.values()
    below = int(holdout * 2**64)
    names: Iterable[str] = files.names
    if files.extents is not None:  # rows of parquet may share a name; copies of an image have to stay together
        count, lengths = Counter(names), files.extents[:, 1].tolist()
        names = (name if count[name] == 1 else f"{name}, {n} bytes" for name, n in zip(names, lengths, strict=True))
    hashes = (hashlib.blake2b(os.fsencode(name), digest_size=8).digest() for name in names)
    is_test = np.fromiter((int.from_bytes(each, "big") < below for each in hashes), bool, files.size)
    if is_test.all() or not is_test.any():
        raise InputError(
            f"--data.holdout {holdout} of the {files.size} images in {path} holds {is_test.sum()} of them out; wanted "
            "some, and not all"
        )
    return files.take(np.flatnonzero(~is_test)), files.take(np.flatnonzero(is_test))
