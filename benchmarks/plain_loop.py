"""Ours beside a plain loop of torch, torchvision and timm, by the accuracy that they reach: `--help` says how.

The loop shares no code with the library: an `nn.Module` of torchvision or timm, `torch.optim`, an `ImageFolder` behind
a `DataLoader`, torchvision's transforms. Its settings are those of `experiments/reference.py`, written down once more.
With `--by-ours` the library's train step takes its place, from the same weights and on the same batches, so that any
difference is one between the two steps.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from tqdm import tqdm

import backbones.tree as tree
from backbones.augment import identity
from backbones.component import use
from backbones.data import image_folder
from backbones.errors import InputError
from backbones.models import with_pretrained
from backbones.run.files import read_json
from backbones.run.metric_lines import read_metrics
from backbones.types import Batch
from benchmarks import run_script
from experiments import EXPERIMENTS

Name = Literal["resnet18", "mobilenet", "vit-tiny"]

Device = Literal["cpu", "cuda"]

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)


def make_module(name: Name) -> nn.Module:
    """The network, for ten classes of 32x32 images, with the same initialisation as ours."""
    module: Any
    if name == "vit-tiny":
        module = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=4)
        for leaf in (leaf for leaf in module.parameters() if leaf.ndim > 1):
            nn.init.trunc_normal_(leaf, std=0.02, a=-0.04, b=0.04)
        nn.init.zeros_(module.patch_embed.proj.bias)
        return module
    if name == "resnet18":
        module = torchvision.models.resnet18(num_classes=10)
        module.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        module.maxpool = nn.Identity()
    else:
        module = timm.create_model("mobilenetv1_100", num_classes=10, act_layer=nn.ReLU)
        module.conv_stem.stride = (1, 1)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return module


def train(
    name: Name, images: Path, seed: int, epochs: float, run_dir: Path, device: Device, workers: int, *, by_ours: bool
) -> dict[str, Any]:
    """Train by the plain loop, or by the library's train step from the same weights on the same batches.

    Returns:
        What is written into `run_dir/result.json`.
    """
    torch.manual_seed(seed)
    normalize = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    train_set = torchvision.datasets.ImageFolder(images / "train", transforms.Compose([*augment, *normalize]))
    test_set = torchvision.datasets.ImageFolder(images / "test", transforms.Compose(normalize))
    batch_size = 512 if name == "vit-tiny" else 256
    loader = DataLoader(
        train_set, batch_size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    num_steps = math.ceil(epochs * len(train_set) / batch_size)
    module = make_module(name)
    bar = tqdm(batches_of(loader, num_steps), total=num_steps, desc=f"{name}, seed {seed}", disable=None)
    if by_ours:
        losses, top1 = train_ours(name, module, bar, num_steps, images, device)
    else:
        losses = train_module(name, module.to(device), bar, num_steps, device)
        top1 = evaluate(module, test_set, device)
    settings = {"model": name, "seed": seed, "epochs": epochs, "by_ours": by_ours}
    result = {**settings, "steps": num_steps, "top1": top1, "losses": losses}
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "result.json").write_text(json.dumps(result))
    return result


def batches_of(loader: DataLoader, num_steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """So many batches, over as many epochs as these take; those of the first are drawn now, by torch's generator."""
    epochs: Iterable[Iterable[tuple[Tensor, Tensor]]] = chain([iter(loader)], repeat(loader))
    return islice(chain.from_iterable(epochs), num_steps)


def train_module(
    name: Name, module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], num_steps: int, device: str
) -> list[float]:
    """Train by the plain loop, and return the loss of each step."""
    module = module.to(memory_format=torch.channels_last)
    if name == "vit-tiny":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, weight_decay=5e-5)
    else:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    lr = optimizer.param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps, eta_min=0.01 * lr)
    losses: list[float] = []
    for batch, labels in batches:
        with torch.autocast(device, torch.bfloat16):
            logits = module(batch.to(device).contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def train_ours(
    name: Name,
    module: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_steps: int,
    images: Path,
    device: Device,
) -> tuple[list[float], float]:
    """Train by the library's train step from the weights of `module`; the loss of each step, and top-1 in [0, 1]."""
    data = use(image_folder, root=str(images))
    experiment = dataclasses.replace(
        EXPERIMENTS[f"cifar10-{name}"],
        data=data,
        augment=use(identity),
        steps=num_steps,
        device=device,
        precision="bfloat16",
        compile="off",
    )
    dataset = data.make()
    model, _ = with_pretrained(experiment.make_model(dataset.info), module.state_dict(), dataset.info.image_shape)
    program = experiment.make(dataset, model)
    state, losses = program.state, []
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    for normalized, labels in batches:
        pixels = (255 * (normalized * std + mean)).round().to(torch.uint8)
        index = torch.zeros_like(labels)  # of no use without augmentation
        batch = Batch(pixels, labels, None, torch.ones(len(labels)), index, index)
        state, metrics = program.train_step(state, tree.map(lambda leaf: leaf.to(device), batch))
        losses.append(metrics["loss"].item())
    return losses, program.evaluate(state)["top1"]


@torch.no_grad()
def evaluate(module: nn.Module, test_set: torchvision.datasets.ImageFolder, device: str) -> float:
    """Top-1 accuracy in [0, 1]."""
    module.eval()
    correct = 0
    for batch, labels in DataLoader(test_set, 500, num_workers=2):
        with torch.autocast(device, torch.bfloat16):
            correct += (module(batch.to(device)).argmax(dim=1).cpu() == labels).sum().item()
    return correct / len(test_set)


def plot(runs: Path, ours: Path, names: tuple[Name, ...], seeds: tuple[int, ...], path: Path) -> None:
    """Draw the training losses of both, and print their accuracies, for the seeds that both have finished."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(names), 3.5), layout="constrained")
    print("| model | ours, top-1 | plain loop, top-1 | difference of the means |\n|---|---|---|---|")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        pairs = [(ours / f"{name}-{seed}", runs / f"{name}-{seed}") for seed in seeds]
        pairs = [pair for pair in pairs if all((folder / "result.json").exists() for folder in pair)]
        if not pairs:
            raise InputError(f"no run of {name} is finished in both {runs} and {ours}, for the seeds {seeds}")
        means, shown = [], []
        for k, (label, style) in enumerate((("ours", "C0-"), ("plain loop", "C1--"))):
            folders = [pair[k] for pair in pairs]
            for i, folder in enumerate(folders):
                axes.plot(*losses_of(folder), style, label=None if i else label)
            top1 = [read_json(folder / "result.json")["top1"] for folder in folders]
            means.append(fmean(top1))
            shown.append(", ".join(f"{value:.2%}" for value in top1))
        axes.set(title=name, xlabel="step", ylabel="training loss (nats)")
        axes.grid(alpha=0.3)
        axes.legend()
        print(f"| {name} | {shown[0]} | {shown[1]} | {100 * (means[0] - means[1]):+.2f} points |")
    figure.savefig(path, dpi=120)


def check_same(run_dir: Path, **settings: Any) -> None:
    """Raise InputError if a finished run has other settings."""
    stored = read_json(run_dir / "result.json")
    for name, value in settings.items():
        if stored.get(name, value) != value:
            raise InputError(f"{run_dir} holds a run with {name} {stored[name]}, not {value}; name another --runs")


def losses_of(run_dir: Path) -> tuple[list[int], list[float]]:
    """Steps, and means of the training loss over the ten steps before each; of a run of the library or of this file."""
    losses = read_json(run_dir / "result.json").get("losses")
    if losses is None:
        lines = [line for line in read_metrics(run_dir) if line["split"] == "train"]
        return [line["step"] for line in lines], [line["loss"] for line in lines]
    ends = [*range(10, len(losses), 10), len(losses)]
    return ends, [fmean(losses[end - 10 : end]) for end in ends]


def main(
    images: Path,
    /,
    *,
    names: tuple[Name, ...] = ("resnet18", "mobilenet", "vit-tiny"),
    seeds: tuple[int, ...] = (0, 1),
    epochs: float = 1.0,
    device: Device = "cpu",
    workers: int = 2,
    runs: Path = Path("benchmark-runs/plain-loop"),
    ours: Path | None = None,
    by_ours: bool = False,
    out: Path = Path("plain-loop.png"),
) -> None:
    """Train the reference's networks by a plain loop, and compare with runs of the library.

    `images` is the extracted CIFAR-10, `train/CLASS/*` and `test/CLASS/*`. Runs that are finished in `--runs` are not
    repeated.
    With `--by-ours` the library's train step takes the place of the loop, from the same weights, on the same batches.
    With `--ours` nothing is trained, and what both have finished is compared: its folders are NAME-SEED, as `--by-ours`
    makes them, or by
    `python train.py cifar10-NAME --seed SEED --data image-folder --data.root images --epochs 1 --precision bfloat16`.
    """
    if ours is not None:
        plot(runs, ours, names, seeds, out)
        return
    for name in names:
        for seed in seeds:
            run_dir = runs / f"{name}-{seed}"
            if (run_dir / "result.json").exists():
                check_same(run_dir, epochs=epochs, by_ours=by_ours)
            else:
                result = train(name, images, seed, epochs, run_dir, device, workers, by_ours=by_ours)
                print(f"{name}, seed {seed}: top-1 {result['top1']:.2%}", flush=True)


if __name__ == "__main__":
    run_script(main)
