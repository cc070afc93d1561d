"""A data set of image files, from a list of them."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

import backbones.distributed as distributed
import backbones.machine as machine
from backbones.data.image_files.cache import stamp
from backbones.data.image_files.decoded import DECODING, Decoded, cache_decoded, read_decoded
from backbones.data.image_files.images import decoder_versions
from backbones.data.image_files.listing import Files, Listing, train_test
from backbones.data.image_files.reader import Reader, Resizing, unreadable
from backbones.data.image_files.workers import Workers
from backbones.data.source import (
    Color,
    DataInfo,
    Dataset,
    Source,
    channel_statistics,
    check_labels,
    note_odd_classes,
    read_some,
)
from backbones.errors import InputError
from backbones.ranges import Count, NonNegativeInt, Range, Share, checked
from backbones.types import CPU

PART, MANY = 8, 3200
"""Where all files are gone through: how many are decoded at a time, and how many are worth worker processes."""

NUM_SAMPLED = 512
"""Training images, at equal distances, from which mean and standard deviation of the channels are estimated."""

CENTER, SMALLEST = 0.875, 0.08
"""Unless other ones are given: share of the shorter side of an image that its central crop takes, and least share of
its area that a random crop takes."""


@checked
def image_files(
    list_files: Callable[[Path], Listing],
    device: torch.device = CPU,
    *,
    root: str,
    holdout: Annotated[float, Range("(0, 1)")] | None = None,
    image_size: Count | None = None,
    channels: Literal[1, 3] = 3,
    crop: Literal["center", "random"] = "center",
    center: Share = CENTER,
    smallest: Share = SMALLEST,
    background: Annotated[Color, Range("[0, 255]")] = (0, 0, 0),
    on_error: Literal["stop", "skip"] = "stop",
    workers: NonNegativeInt | None = None,
    cache: str | None = None,
) -> Dataset:
    """Image files of any size: JPEG, PNG, WebP, TIFF, ...; docs/data.md shows how to lay them out.

    Args:
        list_files: path -> the files there.
        device: where batches are sent.
        root: where the images are.
        holdout: share of the images that is held out for the test, where they are not split; by a hash of the name, so
            that each stays where it is when others are added.
        image_size: height and width of the images that the model sees; None where all files have one size.
        channels: 3 for color, 1 for grey.
        crop: which part of a training image to use where image_size is set: its center, or a crop of random size and
            position (arXiv 1409.4842). Test images always use the center.
        center: share of the shorter side that the center takes.
        smallest: least share of the area that a random crop takes.
        background: red, green and blue behind what is transparent.
        on_error: what to do about files that are not images, or are damaged: stop the run; or skip, which looks for
            them before it begins, lists them in bad_files.txt, and trains without them.
        workers: processes that read images ahead of the step; None for a share of the cores, at most 8, where a GPU
            computes, and for none on a CPU, where the step needs the cores itself.
        cache: folder to keep decoded images in, for the next epochs and runs; it takes a byte per pixel and channel.

    Raises:
        InputError: the files cannot be read, or make no data set.
    """
    if crop == "random" and image_size is None:
        raise InputError("--data.crop is random, and --data.image-size is not set; set it to the size of the crops")
    if center != CENTER and image_size is None:
        distributed.warn0_once(f"--data.center {center} has no effect without --data.image-size: files keep their size")
    if smallest != SMALLEST and crop != "random":
        distributed.warn0_once(f"--data.smallest {smallest} has no effect without --data.crop random")
    path = Path(os.path.expanduser(root)).absolute()
    listing = _list_on_all_machines(list_files, path)
    splits = dict(zip(("train", "test"), train_test(listing, path, holdout), strict=True))
    readers = {
        name: Reader(files._replace(version=files.version_now()), channels, background)
        for name, files in splits.items()
    }
    num_workers = min(8, machine.share_of_cores()) if workers is None else workers
    readers, bad_files = _without_bad_files(readers, on_error, cache, num_workers)
    if distributed.on_main(lambda: bad_files) != bad_files:
        raise InputError(
            f"{distributed.this_process()} finds other unreadable files in {path} than rank 0, and all must train on "
            "the same; make the files equal on all machines"
        )

    labels = {name: torch.from_numpy(reader.files.labels) for name, reader in readers.items()}
    check_labels(labels["train"], labels["test"], listing.class_names)
    note_odd_classes(labels["train"], labels["test"], listing.class_names)
    height, width = (image_size, image_size) if image_size else readers["train"].load(0).shape[1:]
    resizing = Resizing(height, width, center if image_size else None, None)
    readers = {name: reader._replace(resizing=resizing) for name, reader in readers.items()}
    mean, std = channel_statistics(read_some(readers["train"].read, len(labels["train"]), NUM_SAMPLED))
    info = DataInfo((channels, height, width), listing.class_names, mean, std, background, resizing.center)
    if image_size and crop == "random":
        readers["train"] = readers["train"]._replace(resizing=resizing._replace(smallest=smallest))

    pool = Workers(readers, num_workers if device.type == "cuda" or workers is not None else 0)
    train, test = (
        Source(
            info=info,
            labels=labels[name],
            read=reader.read,
            digest=partial(_digest, listing, reader.files),
            start=pool.reading(name),
            bad_files=bad_files[name],
            file_name=reader.name,
        )
        for name, reader in readers.items()
    )
    return Dataset(train, test)


def _list_on_all_machines(list_files: Callable[[Path], Listing], path: Path) -> Listing:
    """What rank 0 lists. Other machines make their own store, where there is one, and check that it has the same.

    Raises:
        InputError: the files cannot be read, or a machine has other images than that of rank 0.
    """
    listing = distributed.on_main(lambda: list_files(path))
    if any(files.store is not None for files in listing.splits.values()):
        distributed.once_a_node(partial(_find_here, listing, list_files, path))
        if not all(os.path.exists(files.store or path) for files in listing.splits.values()):
            listing = list_files(path)  # on another machine than that of rank 0 the store may be elsewhere
    return listing


def _find_here(listing: Listing, list_files: Callable[[Path], Listing], path: Path) -> None:
    """Let a machine other than that of rank 0 make its store too, and check that the same images are in it.

    Raises:
        InputError: they are others.
    """
    if distributed.is_main():
        return
    here = list_files(path).splits
    if here.keys() != listing.splits.keys() or not all(here[name].equals(listing.splits[name]) for name in here):
        raise InputError(
            f"{distributed.this_process()} finds other images in {path} than rank 0; make it equal on all machines"
        )


def _without_bad_files(
    readers: dict[str, Reader], on_error: str, cache: str | None, num_workers: int
) -> tuple[dict[str, Reader], dict[str, tuple[str, ...]]]:
    """Split -> the reader of its files that can be read, from decoded copies if these are kept; and -> all others."""
    bad_files: dict[str, tuple[str, ...]] = dict.fromkeys(readers, ())
    if cache is None and on_error == "stop":  # which it does when it comes to one
        return readers, bad_files
    good_readers = {}
    for name, reader in readers.items():
        if cache is None:
            bad = distributed.on_main(partial(_find_bad, reader, num_workers))
        else:
            decoded, bad = _decode_all(reader, Path(os.path.expanduser(cache)).absolute(), num_workers)
            reader = reader._replace(decoded=decoded)
        bad_files[name] = tuple(f"{reader.name(i)}: {reason}" for i, reason in sorted(bad.items()))
        if bad and on_error == "stop":
            raise InputError(unreadable(bad_files[name][0]))
        rows = np.setdiff1d(np.arange(reader.files.size), sorted(bad))
        good_readers[name] = reader.take(rows) if bad else reader
    return good_readers, bad_files


def _find_bad(reader: Reader, num_workers: int) -> dict[int, str]:
    """Number -> reason of all files that cannot be read."""
    parts = _over_all(reader, "find_bad", num_workers, "looking for files that cannot be read")
    return {i: reason for part in parts for i, reason in part.items()}


def _decode_all(reader: Reader, cache: Path, num_workers: int) -> tuple[Decoded, dict[int, str]]:
    """All decoded images, on the disk of each machine, and number -> reason of the files that cannot be read."""
    files = reader.files
    paths = [files.store] if files.store is not None else [files.path_of(i) for i in range(files.size)]
    stamps = [stamp(path) if os.path.exists(path) else None for path in paths]
    decoding = [DECODING, *decoder_versions()]
    about = hashlib.sha256(json.dumps([decoding, files.root, stamps, reader.channels, reader.background]).encode())
    for array in (*files.names.to_arrays(), files.extents):
        about.update(b"" if array is None else array.tobytes())
    folder = cache / f"decoded-{about.hexdigest()[:16]}"

    parts = partial(_over_all, reader, "decode_some", num_workers, f"decoding into {folder}")
    distributed.once_a_node(partial(cache_decoded, folder, parts))
    return read_decoded(folder)


def _over_all(reader: Reader, method: str, num_workers: int, what: str) -> Iterator[Any]:
    """The results of a method of the reader for all its files, part by part, in processes where there are many."""
    size = reader.files.size
    parts = [list(range(start, min(start + PART, size))) for start in range(0, size, PART)]
    workers = Workers({"": reader}, num_workers if size > MANY else 0)
    with distributed.progress(desc=what, total=size, unit=" files") as bar:
        for part, result in zip(parts, workers.in_order("", method, parts), strict=True):
            yield result
            bar.update(len(part))


def _digest(listing: Listing, files: Files) -> str:
    content = hashlib.sha256(json.dumps(listing.class_names).encode())
    for array in (*files.names.to_arrays(), files.labels):
        content.update(array.tobytes())
    return content.hexdigest()
