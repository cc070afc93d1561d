"""What saving costs, beside torch.save and torch.distributed.checkpoint: `python -m benchmarks.checkpoint --help`."""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

import backbones.tree as tree
from backbones.component import use
from backbones.data import digits
from backbones.experiment import Experiment
from backbones.models.vit import vit_base
from backbones.run.checkpoint import Checkpoints, list_steps, load_arrays, read_checkpoint
from backbones.train_step import TrainState
from benchmarks import interleaved, run_script
from experiments.digits import digits_resnet18, digits_vit_tiny

Way = Callable[[TrainState, Path], Iterator[None]]
"""Saves a state in a folder and restores it: yields when training may go on, when all is written, and at the end."""


def ours(state: TrainState, folder: Path) -> Iterator[None]:
    """Copied at once, hashed and written by a thread; restored with all hashes compared."""
    checkpoints = Checkpoints(folder, experiment=digits_resnet18, info=digits().info)
    checkpoints.save(state, {})
    yield
    checkpoints.close()
    yield
    load_arrays(state, read_checkpoint(folder / str(list_steps(folder)[-1])).arrays)
    yield


def torch_save(state: TrainState, folder: Path) -> Iterator[None]:
    """Written at once; restored without verification."""
    torch.save(tree.named_leaves(state), folder / "state.pt")
    yield
    yield
    tree.map(torch.Tensor.copy_, tree.named_leaves(state), torch.load(folder / "state.pt"))
    yield


def dcp_async_save(state: TrainState, folder: Path) -> Iterator[None]:
    """Copied at once, written by a thread; restored without verification."""
    future = dcp.async_save(tree.named_leaves(state), checkpoint_id=folder / "dcp")
    yield
    assert isinstance(future, Future)
    future.result()
    yield
    dcp.load(tree.named_leaves(state), checkpoint_id=folder / "dcp")
    yield


WAYS: dict[str, Way] = {"ours": ours, "torch.save": torch_save, "dcp.async_save": dcp_async_save}


def main(*, steps: int = 50, rounds: int = 3, batch_size: int = 32, vit_batch_size: int = 4) -> None:
    """Time training on the digits with one save in `--steps` steps, and each save and restore; medians of `--rounds`.

    `all steps`: the steps and the save, until it is on the disk, over as many steps without a save in the same round.
    `slowest step`: the slowest step, where the first one includes what the save holds up, over the mean step without a
    save. Files are read back from the page cache.
    """
    # torch.distributed.checkpoint needs a process group
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    print("| model and optimizer | way | all steps | slowest step | ms held up | ms to save | ms to restore | MB |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    measure(replace(digits_resnet18, batch_size=batch_size), steps, rounds)
    measure(replace(digits_vit_tiny, model=use(vit_base, patch_size=4), batch_size=vit_batch_size), steps, rounds)
    dist.destroy_process_group()


def measure(experiment: Experiment, steps: int, rounds: int) -> None:
    """Print the rows of one model."""
    program = experiment.make()
    state = program.state

    def train(way: Way | None, num_steps: int) -> tuple[float, float]:
        """Save, then train: seconds until all is done and written, and seconds of the slowest step."""
        nonlocal state
        with tempfile.TemporaryDirectory() as folder:
            ends = [time.perf_counter()]
            saving = way(state, Path(folder)) if way else iter((None, None))
            next(saving)
            for step in range(num_steps):
                state, metrics = program.train_step(state, program.batches(step))
                metrics["loss"].item()  # waits for the device
                ends.append(time.perf_counter())
            next(saving)
            return time.perf_counter() - ends[0], max(end - start for start, end in pairwise(ends))

    train(None, 3)
    trained = interleaved({name: partial(train, WAYS.get(name), steps) for name in ("none", *WAYS)}, rounds)
    costs = interleaved({name: partial(save_and_restore, state, way) for name, way in WAYS.items()}, 2 * rounds + 1)
    mean_step = median(seconds for seconds, _ in trained["none"]) / steps
    label = f"{experiment.model.name}, {experiment.optim.name}, {1e3 * mean_step:.0f} ms per step"
    for name in WAYS:
        ratio = median(a / b for (a, _), (b, _) in zip(trained[name], trained["none"], strict=True))
        slowest = median(each for _, each in trained[name]) / mean_step
        *seconds, size = map(median, zip(*costs[name], strict=True))
        milliseconds = " | ".join(f"{1e3 * each:,.0f}" for each in seconds)
        print(f"| {label} | {name} | {ratio:.2f} | {slowest:.1f} | {milliseconds} | {size / 1e6:,.1f} |", flush=True)


def save_and_restore(state: TrainState, way: Way) -> tuple[float, float, float, int]:
    """Seconds until training may go on, until all is written, and to restore; and bytes on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        held_up, written, restored = (time.perf_counter() - start for _ in way(state, Path(folder)))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        return held_up, written, restored - written, size


if __name__ == "__main__":
    run_script(main)
