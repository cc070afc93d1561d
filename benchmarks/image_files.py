"""Image files beside torchvision's ImageFolder, and very many of them: `python -m benchmarks.image_files --help`."""

import itertools
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import tyro
from torch import Tensor
from torch.utils.data import DataLoader
from torchcodec.decoders import decode_jpeg
from torchvision import transforms
from torchvision.datasets import ImageFolder
from tqdm import tqdm
from tyro.conf import Positional

import backbones.machine as machine
from backbones.commands.exit import run_command
from backbones.data import Dataset, image_folder, image_tar, in_memory, make_batches
from backbones.data.image_files.workers import Workers
from backbones.data.source import Source
from backbones.errors import InputError
from backbones.types import CPU, Batch
from benchmarks import medians, status
from benchmarks.contenders import Precision, Setting

BATCH = 128

Read = Callable[[int], Tensor | Batch]
"""The batch of a step."""


def read(tar: Positional[Path], *, image_size: int | None = None, batches: int = 40, rounds: int = 5) -> None:
    """Images a second that are read and decoded, in batches of 128.

    Args:
        tar: of JPEG files in a tree of train/CLASS/* and test/CLASS/*.
        image_size: of a random resized crop; None where all files have one size.
        batches: of each measurement.
        rounds: measurements of each kind, interleaved; the median counts.
    """
    cores = machine.num_cores()
    with unpacked(tar) as folder:
        paths = sorted(folder.glob("train/*/*"))
        contents = [paths[i].read_bytes() for i in torch.randperm(len(paths))[: BATCH * batches].tolist()]

        ours = partial(image_tar, root=str(tar), image_size=image_size, crop="random" if image_size else "center")

        def torchcodec(step: int) -> Tensor:
            images = [decode_jpeg(contents[(BATCH * step + i) % len(contents)]) for i in range(BATCH)]
            return torch.stack(images) if image_size is None else images  # type: ignore

        reads: dict[str, Read] = {
            "torchcodec alone": torchcodec,
            "ours, in the process that trains": plain(ours()),
            **{f"ours, {n} workers": plain(ours(workers=n)) for n in (1, cores)},
            "ours, decoded before": plain(ours(cache=str(folder / "kept"))),
            **{f"ImageFolder, {n} workers": loaded(folder, n, image_size) for n in (1, cores)},
        }
        measurements: dict[str, Callable[[], float]] = {
            f"ours, decoding alone, {cores} workers": decoding(ours(), cores, batches),
            **{name: partial(rate, each, batches) for name, each in reads.items()},
        }
        rates = medians(measurements, rounds, warmup=1)
    print(f"| read by | images/s | over torchcodec alone times {cores} |\n|---|--:|--:|")
    for name, value in rates.items():
        print(f"| {name} | {value:,.0f} | {value / rates['torchcodec alone'] / cores:.2f} |")


def train(
    tar: Positional[Path],
    *,
    model: str = "resnet18",
    precision: Precision = "bfloat16",
    batches: int = 4,
    rounds: int = 7,
) -> None:
    """Images a second of training on the same files in memory, from the tar, decoded before, and by ImageFolder.

    Args:
        tar: as for `read`.
        model: which.
        precision: of the model.
        batches: of each measurement.
        rounds: measurements of each kind, interleaved; the median counts.
    """
    setting = Setting(model, precision, BATCH, 32, "cpu", keep_memory=True)
    experiment = replace(setting.experiment(), steps=10**6)
    with unpacked(tar) as folder:
        cached = image_tar(root=str(tar), cache=str(folder / "kept"))
        program = experiment.make(in_memory_copy(cached))
        reads: dict[str, Read] = {
            "in memory": program.batches,
            "from the tar": plain(image_tar(root=str(tar))),
            **{f"from the tar, {n} workers": plain(image_tar(root=str(tar), workers=n)) for n in (1, 2)},
            "decoded before": plain(cached),
            "ImageFolder, 2 workers": loaded(folder, 2),
        }
        state = program.state

        def step(read: Read, i: int) -> Batch:
            nonlocal state
            found = read(i)
            batch = program.batches(0)._replace(images=found) if isinstance(found, Tensor) else found
            state, metrics = program.train_step(state, batch)
            metrics["loss"].item()
            return batch

        steps = {name: partial(rate, partial(step, each), batches) for name, each in reads.items()}
        rates = medians(steps, rounds, warmup=1)
    print(f"| {model}, {precision} | images/s | over in memory |\n|---|--:|--:|")
    for name, value in rates.items():
        print(f"| {name} | {value:,.0f} | {value / rates['in memory']:.3f} |")


def plain(dataset: Dataset) -> Read:
    """Our batches of a data set."""
    return make_batches(dataset.train, seed=0, batch_size=BATCH, device=CPU)


def decoding(dataset: Dataset, number: int, batches: int) -> Callable[[], float]:
    """Images a second that worker processes decode, and keep to themselves."""
    reader = dataset.train.read.__self__  # type: ignore[attr-defined]
    parts = torch.randperm(dataset.train.size)[: BATCH * batches].split(BATCH)
    workers = Workers({"": reader}, number)

    def measure() -> float:
        time.sleep(0.5)  # what others have begun to read ahead
        start = time.perf_counter()
        for _ in workers.in_order("", "find_bad", [part.tolist() for part in parts]):
            pass
        return sum(map(len, parts)) / (time.perf_counter() - start)

    return measure


def in_memory_copy(dataset: Dataset) -> Dataset:
    """The same images in memory."""

    def copy(source: Source) -> tuple[Tensor, Tensor]:
        index = torch.arange(source.size)
        return source.read(index, index), source.labels

    return in_memory(copy(dataset.train), copy(dataset.test), dataset.info.class_names, CPU)


def loaded(folder: Path, workers: int, image_size: int | None = None) -> Read:
    """The usual script: ImageFolder behind a DataLoader."""
    crop = [transforms.RandomResizedCrop(image_size)] if image_size else []
    loader = DataLoader(
        ImageFolder(str(folder / "train"), transforms.Compose([*crop, transforms.PILToTensor()])),
        BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
    )

    def endless() -> Iterator[Tensor]:
        while True:
            yield from (images for images, _ in loader)

    batches = endless()
    return lambda _: next(batches)


_next_step = itertools.count()


def rate(read: Read, batches: int) -> float:
    """Images a second of some steps in a row, from a step that nothing was read ahead for."""
    time.sleep(0.5)  # what others have begun to read ahead
    first, start = next(_next_step) * 2 * batches, time.perf_counter()
    for i in range(batches):
        read(first + i)
    return BATCH * batches / (time.perf_counter() - start)


@contextmanager
def unpacked(tar: Path) -> Iterator[Path]:
    """A folder of the files in a tar, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as name, tarfile.open(tar) as opened:
        opened.extractall(name, filter="data")
        yield Path(name)


def listing(jpeg: Positional[Path], folder: Positional[Path], *, images: int = 1_281_167, classes: int = 1000) -> None:
    """Time and memory to list very many files: the first time, and again; and to read a batch of them.

    Args:
        jpeg: a small one, of which all files are hard links (of a copy for each 50,000).
        folder: a new one, where to make them; it is deleted at the end.
        images: number of training images.
        classes: number of classes.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already; name a new folder, which is deleted at the end")
    per_class = -(-images // classes)
    original = folder / "original"
    for k in tqdm(range(classes), "making the files", unit=" classes"):
        if k % max(1, 50_000 // per_class) == 0:
            original = folder / f"original-{k}"
            original.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(jpeg, original)
        for split, number in (("train", min(per_class, images - k * per_class)), ("test", 1)):
            place = folder / "tree" / split / f"n{k:08d}"
            place.mkdir(parents=True)
            for i in range(number):
                os.link(original, place / f"n{k:08d}_{i:05d}.JPEG")
    time.sleep(3)  # a listing is kept of folders that have not changed for two seconds
    print("| | listing, s | first batch after it, s | memory of the listing, MB | and of the batch, MB |")
    print("|---|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as cache:
        for when in ("first time", "again"):
            code = f"from benchmarks.image_files import list_and_read; list_and_read({str(folder / 'tree')!r})"
            environment = {**os.environ, "XDG_CACHE_HOME": cache}
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            print(f"| {when} {done.stdout.strip()}")
    shutil.rmtree(folder)


def list_and_read(root: str) -> None:
    """Print a row of the table of `listing`."""
    from backbones.data.image_folder import list_folder

    start, before = time.perf_counter(), megabytes("VmRSS")
    list_folder(Path(root))
    listed, peak = time.perf_counter() - start, megabytes("VmHWM")
    start = time.perf_counter()
    plain(image_folder(root=root))(0)
    seconds, highest = time.perf_counter() - start, megabytes("VmHWM")
    print(f"| {listed:.1f} | {seconds:.1f} | {peak - before:,.0f} | {highest - before:,.0f} |")


def memory(tar: Positional[Path], *, steps: int = 30, images: tuple[int, ...] = (1_000, 50_000)) -> None:
    """Memory of a training on more and more images of a tar, each in a process of its own.

    Args:
        tar: as for `read`.
        steps: of each training.
        images: how many of the training images.
    """
    print("| images | memory of the process at the end, MB | peak, MB |\n|--:|--:|--:|")
    for number in images:
        code = f"from benchmarks.image_files import train_on; train_on({str(tar)!r}, {number}, {steps})"
        subprocess.run([sys.executable, "-c", code], check=True)


def train_on(tar: str, number: int, steps: int) -> None:
    """Print a row of the table of `memory`."""
    dataset = image_tar(root=tar)
    reader = dataset.train.read.__self__  # type: ignore[attr-defined]
    rows = torch.arange(number) * reader.files.size // number
    reader = reader.take(rows.numpy())
    train = dataset.train._replace(labels=torch.from_numpy(reader.files.labels), read=reader.read)
    experiment = replace(Setting("mobilenet", "float32", 32, 32, "cpu", keep_memory=True).experiment(), steps=steps)
    program = experiment.make(Dataset(train, dataset.test))
    state = program.state
    for step in range(steps):
        state, _ = program.train_step(state, program.batches(step))
    print(f"| {number:,} | {megabytes('VmRSS'):,.0f} | {megabytes('VmHWM'):,.0f} |")


def megabytes(name: str) -> float:
    """An entry of this process's memory, in MB."""
    return status(name) / 1e6


COMMANDS: dict[str, Callable[..., None]] = {"read": read, "train": train, "listing": listing, "memory": memory}

if __name__ == "__main__":
    run_command(
        lambda args: tyro.extras.subcommand_cli_from_dict(COMMANDS, args=args, prog="python -m benchmarks.image_files")
    )
