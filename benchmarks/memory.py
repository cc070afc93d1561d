"""Peak memory of a training step, beside a hand-written loop: `python -m benchmarks.memory --help`."""

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

import backbones.random as random
from backbones import optim
from backbones.augment import crop_flip, make_normalize
from backbones.component import use
from backbones.data import Dataset, in_memory, make_batches
from backbones.experiment import Experiment
from backbones.models import MODELS

MODELS_OF_THE_TABLE = ("resnet18", "mobilenet", "shufflenet-g8", "vit-tiny")


def random_images(device: torch.device) -> Dataset:
    """1,280 random images of 3x32x32 in 10 classes."""
    generator = random.generator(0)
    images = torch.randint(256, (1280, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(1280) % 10
    return in_memory((images, labels), (images[:10], labels[:10]), tuple("0123456789"), device)


def make_experiment(model: str, batch_size: int) -> Experiment:
    """SGD for ConvNets and Adam for ViTs, as in the recipes."""
    return Experiment(
        name="memory",
        data=use(random_images),
        augment=use(crop_flip),
        model=use(MODELS[model]),
        optim=use(optim.adam if model.startswith("vit") else optim.sgd),
        steps=100,
        batch_size=batch_size,
        device="cpu",
    )


def ours(model: str, batch_size: int) -> Callable[[int], Tensor]:
    """The eager step of the library."""
    state, train_step, batches, *_ = make_experiment(model, batch_size).make()

    def step(i: int) -> Tensor:
        nonlocal state
        state, metrics = train_step(state, batches(i))
        return metrics["loss"]

    return step


def by_hand(model: str, batch_size: int) -> Callable[[int], Tensor]:
    """The same model, data and optimizer in a plain loop of nn.Module, backward() and torch.optim."""
    experiment = make_experiment(model, batch_size)
    dataset = experiment.data.make(device=torch.device("cpu"))
    functional = experiment.make_model(dataset.info)
    params, model_state = functional.init(random.generator(0))
    module: nn.Module = functional.skeleton.to_empty(device="cpu").to(memory_format=torch.channels_last).train()
    module.load_state_dict({**params, **model_state})
    del params, model_state
    if model.startswith("vit"):
        optimizer: torch.optim.Optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, foreach=True)
    else:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, foreach=True)
    normalize = make_normalize(dataset.info.mean, dataset.info.std, torch.device("cpu"))
    augment = experiment.augment.make()
    batches = make_batches(dataset.train, seed=0, batch_size=batch_size, device=torch.device("cpu"))

    def step(i: int) -> Tensor:
        batch = batches(i)
        batch = augment(random.sample_keys(random.key(0), i, batch.index), batch)
        loss = F.cross_entropy(module(normalize(batch.images)), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


CONTENDERS = {"ours": ours, "by hand": by_hand}


def status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match
    return 1024 * int(match[1])


def measure(contender: str, model: str, batch_size: int, steps: int) -> dict[str, float]:
    """Peak of the resident memory of this process over that before the model is made, and seconds of a step."""
    torch.set_num_threads(2)
    before = status("VmRSS")
    step = CONTENDERS[contender](model, batch_size)
    step(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    seconds = []
    for i in range(1, steps + 1):
        start = time.perf_counter()
        step(i)
        seconds.append(time.perf_counter() - start)
    return {"peak": status("VmHWM") - before, "seconds": statistics.median(seconds)}


def main(
    models: tyro.conf.Positional[tuple[str, ...]] = MODELS_OF_THE_TABLE,
    /,
    *,
    batch_size: int = 128,
    steps: int = 4,
    rounds: int = 3,
) -> None:
    """Peak memory of an eager float32 training step on images of 3x32x32, ours over a hand-written loop's.

    Each measurement has a process of its own; they are interleaved, and the figures are medians. Linux only.

    Args:
        models: names of models.
        batch_size: images a step.
        steps: steps that are measured, after a first one.
        rounds: processes for each figure.
    """
    print("| model | ours, MB | by hand, MB | ratio | ms a step | by hand | ratio |\n|---|--:|--:|--:|--:|--:|--:|")
    for model in models:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for _ in range(rounds):
            for name in CONTENDERS:
                call = f"measure({name!r}, {model!r}, {batch_size}, {steps})"
                script = f"import json; from benchmarks.memory import measure; print(json.dumps({call}))"
                command = [sys.executable, "-c", script]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[name].append(json.loads(done.stdout))
        (peak, seconds), (their_peak, their_seconds) = (
            [statistics.median(each[key] for each in found[name]) for key in ("peak", "seconds")] for name in CONTENDERS
        )
        print(
            f"| {model} | {peak / 1e6:,.0f} | {their_peak / 1e6:,.0f} | {peak / their_peak:.2f} "
            f"| {1e3 * seconds:,.0f} | {1e3 * their_seconds:,.0f} | {seconds / their_seconds:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.memory")
