"""What saving costs, beside torch.save and torch.distributed.checkpoint: `python -m benchmarks.checkpoint --help`."""

import dataclasses
import itertools
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import tyro
from tqdm import tqdm

import backbones.distributed as distributed
import backbones.tree as tree
from backbones.component import use
from backbones.data import digits
from backbones.experiment import Experiment, Program
from backbones.models.vit import vit_base
from backbones.run.checkpoint import Checkpoints, list_steps, load_arrays, read_checkpoint
from backbones.train_step import TrainState
from experiments.digits import digits_resnet18, digits_vit_tiny

Wait = Callable[[], object]


class Way(NamedTuple):
    """A way to keep a state in a folder that is new each time."""

    save: Callable[[TrainState, Path], Wait]
    """Returns when the training may go on; what it returns waits until the disk is written."""
    restore: Callable[[TrainState, Path], object]
    """Fills the memory of the state."""


def save_ours(state: TrainState, folder: Path) -> Wait:
    """Copied at once; hashed and written by a thread."""
    checkpoints = Checkpoints(folder, experiment=digits_resnet18, info=digits().info)
    checkpoints.save(state, {})

    def wait() -> None:
        checkpoints.wait()
        checkpoints.close()

    return wait


def restore_ours(state: TrainState, folder: Path) -> None:
    """All files and leaves are compared with their hashes."""
    load_arrays(state, read_checkpoint(folder / str(list_steps(folder)[-1])).arrays)


def save_torch(state: TrainState, folder: Path) -> Wait:
    """Written at once."""
    torch.save(tree.named_leaves(state), folder / "state.pt")
    return lambda: None


def restore_torch(state: TrainState, folder: Path) -> None:
    """Without looking whether it is what was saved."""
    saved = torch.load(folder / "state.pt", weights_only=True)
    for name, leaf in tree.named_leaves(state).items():
        leaf.copy_(saved[name])


def save_dcp(state: TrainState, folder: Path) -> Wait:
    """Copied at once, written by a thread."""
    future = dcp.async_save(tree.named_leaves(state), checkpoint_id=folder / "dcp")
    assert isinstance(future, Future)
    return future.result


def restore_dcp(state: TrainState, folder: Path) -> None:
    """Without looking whether it is what was saved."""
    dcp.load(tree.named_leaves(state), checkpoint_id=folder / "dcp")


WAYS = {
    "ours": Way(save_ours, restore_ours),
    "torch.save": Way(save_torch, restore_torch),
    "dcp.async_save": Way(save_dcp, restore_dcp),
}


def main(*, steps: int = 50, rounds: int = 3, batch_size: int = 32, vit_batch_size: int = 4) -> None:
    """Time the steps of a run that saves once in so many, over one that does not, and each save and restore.

    The ways are interleaved; the figures are medians. `all steps` is the time of all, until the disk is written too,
    over that of as many without a save in the same round; `slowest step` is that of the slowest, what the save holds up
    counted in, over that of a step without. Each step waits for its device. Written files are read back from the memory
    of the system.

    Args:
        steps: steps between two saves.
        rounds: turns.
        batch_size: images a step of ResNet-18, on digits.
        vit_batch_size: images a step of ViT-Base, on digits.
    """
    distributed.join()
    if not dist.is_initialized():  # torch.distributed.checkpoint wants it
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    warnings.filterwarnings("ignore")  # of torch.distributed.checkpoint
    logging.disable(logging.WARNING)
    resnet = dataclasses.replace(digits_resnet18, batch_size=batch_size)
    vit = dataclasses.replace(digits_vit_tiny, model=use(vit_base, patch_size=4), batch_size=vit_batch_size)
    print("| model and optimizer | way | all steps | slowest step | ms held up | ms to save | ms to restore | MB |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for experiment in (resnet, vit):
        measure(experiment, steps=steps, rounds=rounds)
    dist.destroy_process_group()


def measure(experiment: Experiment, *, steps: int, rounds: int) -> None:
    """Print the rows of one model."""
    program = experiment.make()
    state, *_ = stretch(program.state, program, 3, None)
    seconds: dict[str, list[float]] = {name: [] for name in ("none", *WAYS)}
    slowest: dict[str, list[float]] = {name: [] for name in seconds}
    turns = list(itertools.product(range(rounds), seconds))
    for _, name in tqdm(turns, desc=experiment.model.name, leave=False, disable=not sys.stderr.isatty()):
        state, taken, longest = stretch(state, program, steps, WAYS.get(name))
        seconds[name].append(taken)
        slowest[name].append(longest)
    plain = statistics.median(seconds["none"]) / steps
    label = f"{experiment.model.name}, {experiment.optim.name}, {1e3 * plain:.0f} ms a step"
    costs: dict[str, list[tuple[float, float, float, int]]] = {name: [] for name in WAYS}
    for _, name in itertools.product(range(2 * rounds + 1), WAYS):
        costs[name].append(save_and_restore(state, WAYS[name]))
    for name in WAYS:
        held_up, to_save, to_restore, size = map(statistics.median, zip(*costs[name], strict=True))
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["none"], strict=True))
        longest = statistics.median(slowest[name]) / plain
        milliseconds = " | ".join(f"{1e3 * value:,.0f}" for value in (held_up, to_save, to_restore))
        print(f"| {label} | {name} | {ratio:.2f} | {longest:.1f} | {milliseconds} | {size / 1e6:,.1f} |", flush=True)


def stretch(state: TrainState, program: Program, steps: int, way: Way | None) -> tuple[TrainState, float, float]:
    """So many steps, the first after a save; the seconds until all is done; and those of the slowest step."""
    with tempfile.TemporaryDirectory() as folder:
        ends = [time.perf_counter()]
        wait = way.save(state, Path(folder)) if way else lambda: None
        for step in range(steps):
            state, metrics = program.train_step(state, program.batches(step))
            metrics["loss"].item()  # the device has done
            ends.append(time.perf_counter())
        wait()
        return state, time.perf_counter() - ends[0], max(end - start for start, end in itertools.pairwise(ends))


def save_and_restore(state: TrainState, way: Way) -> tuple[float, float, float, int]:
    """Seconds until the training may go on, until all is written, and to restore; and bytes on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        wait = way.save(state, Path(folder))
        held_up = time.perf_counter() - start
        wait()
        saved = time.perf_counter() - start
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        start = time.perf_counter()
        way.restore(state, Path(folder))
        return held_up, saved, time.perf_counter() - start, size


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.checkpoint")
