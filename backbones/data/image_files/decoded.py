"""Decoded images kept on disk, in one memory-mapped file: decoded once for all epochs and runs."""

import fcntl
import json
import math
import os
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from backbones.data.image_files.cache import UNREADABLE, delete_leftovers, stamp, with_filename
from backbones.data.image_files.workers import check_main
from backbones.errors import InputError

PIXELS, INDEX = "pixels.bin", "index.npz"

DECODING = 4
"""Version of how images are decoded: another one decodes them anew."""


class Decoded(NamedTuple):
    """N decoded images of any sizes."""

    path: str
    """The file of their pixels, one after the other."""
    starts: np.ndarray
    """[N] int64, where each begins in it."""
    shapes: np.ndarray
    """[N, 3] int64, C, h and w."""
    checks: np.ndarray
    """[N] int64, Adler-32 of the pixels of each, which is fast."""
    version: tuple[int, ...] | None = None
    """Of that file: it may be replaced by another one while this process lives."""

    def image(self, i: int) -> Tensor:
        """Image `i`, [C, h, w] uint8.

        Raises:
            InputError: it is not what was written.
        """
        start, shape = int(self.starts[i]), self.shapes[i].tolist()
        pixels = _mapped(self.path, self.version)[start : start + math.prod(shape)]
        if zlib.adler32(pixels.numpy().data) != self.checks[i]:
            raise damaged(Path(self.path).parent)
        return pixels.view(shape)

    def take(self, rows: np.ndarray) -> "Decoded":
        """Some of the images, by number [M] int64."""
        return Decoded(self.path, self.starts[rows], self.shapes[rows], self.checks[rows], self.version)


@cache
def _mapped(path: str, version: tuple[int, ...] | None) -> Tensor:
    with with_filename(Path(path)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes to it
        # mode "c" would be writable, but must not exceed the memory
        return torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="r"))


def read_decoded(folder: Path) -> tuple[Decoded, dict[int, str]]:
    """What is in a folder of `write_decoded`, and number -> reason of the images that are missing.

    Raises:
        InputError: it is damaged.
    """
    try:
        with (folder / INDEX).open("rb") as file, np.load(file) as arrays:
            decoded = Decoded(str(folder / PIXELS), *(arrays[name] for name in ("starts", "shapes", "checks")))
            bad = {int(i): reason for i, reason in json.loads(bytes(arrays["bad"])).items()}
        version = stamp(folder / PIXELS)
        if version[1] == decoded.shapes.prod(axis=1).sum():
            return decoded._replace(version=version), bad
    except UNREADABLE:
        pass
    raise damaged(folder)


def damaged(folder: Path) -> InputError:
    """The error about a folder that does not hold what was written there."""
    return InputError(f"{folder} is damaged; delete it, and the images are decoded again")


def write_decoded(folder: Path, parts: Iterable[tuple[list[np.ndarray], dict[int, str]]]) -> None:
    """Write images into a new folder, in parts, each with number -> reason of those in it that are missing."""
    shapes, checks = [], []
    bad: dict[int, str] = {}
    with (
        with_filename(folder),
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-", ignore_cleanup_errors=True) as name,
    ):
        unfinished = Path(name) / "unfinished"
        unfinished.mkdir()
        with (unfinished / PIXELS).open("wb") as file:
            for images, bad_here in parts:
                for image in images:
                    file.write(image.data)
                    shapes.append(image.shape)
                    checks.append(zlib.adler32(image.data))
                bad |= bad_here
        all_shapes = np.array(shapes, dtype=np.int64)
        ends = all_shapes.prod(axis=1).cumsum()
        np.savez(
            unfinished / INDEX,
            starts=np.concatenate([[0], ends[:-1]]),
            shapes=all_shapes,
            checks=np.array(checks, dtype=np.int64),
            bad=np.frombuffer(json.dumps(bad).encode(), dtype=np.uint8),
        )
        try:
            os.replace(unfinished, folder)
        except OSError:
            if not folder.exists():  # else another process has written it
                raise


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Within the block no other process on this machine is in it for the same folder."""
    check_main()  # it would wait for the process that has started it
    with open(f"{folder}.lock", "w") as file:
        with suppress(OSError):  # a disk without locks: two processes may do the same work
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cache_decoded(folder: Path, parts: Callable[[], Iterable[tuple[list[np.ndarray], dict[int, str]]]]) -> None:
    """Write the images in `parts()` into `folder`, unless an earlier run has."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(folder):
        if not folder.exists():
            delete_leftovers(folder.parent.glob(f"{folder.name}-*"))
            write_decoded(folder, parts())
