"""Peak memory of a training step, beside a hand-written loop: `python -m benchmarks.memory --help`."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
import tyro
from torch import nn
from tyro.conf import Positional

import backbones.random as random
from backbones.augment import identity, make_normalize
from backbones.component import use
from backbones.data import Dataset, in_memory, make_batches
from backbones.data.source import CPU
from backbones.experiment import Experiment
from backbones.models import MODELS
from benchmarks import interleaved
from benchmarks.optimizers import COUNTERPARTS
from experiments.digits import digits_resnet18, digits_vit_tiny

Step = Callable[[int], None]
MakeStep = Callable[[str, int], Step]

TABLE = ("resnet18", "mobilenet", "shufflenet-g8", "vit-tiny")


def random_images(device: torch.device) -> Dataset:
    """1,280 random images of 3x32x32 in 10 classes."""
    images = torch.randint(256, (1280, 3, 32, 32), dtype=torch.uint8, generator=random.generator(0))
    labels = torch.arange(1280) % 10
    return in_memory((images, labels), (images[:10], labels[:10]), tuple("0123456789"), device)


def make_experiment(model: str, batch_size: int) -> Experiment:
    """A ConvNet with SGD or a ViT with Adam, as in the recipes."""
    recipe = digits_vit_tiny if model.startswith("vit") else digits_resnet18
    recipe = replace(recipe, data=use(random_images), augment=use(identity), model=use(MODELS[model]))
    return replace(recipe, batch_size=batch_size, device="cpu")


def ours(model: str, batch_size: int) -> Step:
    """The eager step of the library."""
    state, train_step, batches, *_ = make_experiment(model, batch_size).make()

    def step(i: int) -> None:
        nonlocal state
        state, _ = train_step(state, batches(i))

    return step


def by_hand(model: str, batch_size: int) -> Step:
    """The same model, data and optimizer in a plain loop of nn.Module, backward() and torch.optim."""
    experiment = make_experiment(model, batch_size)
    dataset = experiment.data.make(device=CPU)
    functional = experiment.make_model(dataset.info)
    params, model_state = functional.init(random.generator(0))
    module: nn.Module = functional.skeleton.to_empty(device="cpu").to(memory_format=torch.channels_last).train()
    module.load_state_dict({**params, **model_state})
    optimizer = COUNTERPARTS[experiment.optim.name](module.parameters(), lr=experiment.optim.values["lr"], foreach=True)
    normalize = make_normalize(dataset.info.mean, dataset.info.std, CPU)
    batches = make_batches(dataset.train, seed=0, batch_size=batch_size, device=CPU)

    def step(i: int) -> None:
        batch = batches(i)
        loss = F.cross_entropy(module(normalize(batch.images)), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields[field].split()[0])


def measure(make_step: MakeStep, model: str, batch_size: int, steps: int) -> tuple[float, float]:
    """Peak of the resident memory of this process over that before the model is made, and seconds of a step."""
    torch.set_num_threads(2)
    before = status("VmRSS")
    step = make_step(model, batch_size)
    step(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    seconds = []
    for i in range(1, steps + 1):
        start = time.perf_counter()
        step(i)
        seconds.append(time.perf_counter() - start)
    return status("VmHWM") - before, median(seconds)


def main(
    models: Positional[tuple[str, ...]] = TABLE, /, *, batch_size: int = 128, steps: int = 4, rounds: int = 3
) -> None:
    """Peak memory of an eager float32 training step on images of 3x32x32, ours over a hand-written loop's.

    The figures are medians of `--rounds` interleaved measurements, each of `--steps` steps after a first one in its own
    process. Linux only.
    """
    print("| model | ours, MB | by hand, MB | ratio | ms a step | by hand | ratio |\n|---|--:|--:|--:|--:|--:|--:|")

    def run(make_step: MakeStep, model: str) -> tuple[float, float]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # a new process
            return pool.submit(measure, make_step, model, batch_size, steps).result()

    for model in models:
        found = interleaved({make.__name__: partial(run, make, model) for make in (ours, by_hand)}, rounds)
        (peak, seconds), (their_peak, their_seconds) = (map(median, zip(*each, strict=True)) for each in found.values())
        print(
            f"| {model} | {peak / 1e6:,.0f} | {their_peak / 1e6:,.0f} | {peak / their_peak:.2f} "
            f"| {1e3 * seconds:,.0f} | {1e3 * their_seconds:,.0f} | {seconds / their_seconds:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.memory")
