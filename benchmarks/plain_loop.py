"""Ours beside a plain loop of torch, torchvision and timm, by the accuracy that they reach: `--help` says how.

The loop shares no code with the library: an `nn.Module` of torchvision or timm, `torch.optim`, an `ImageFolder` behind
a `DataLoader`, torchvision's transforms. Its settings are those of `experiments/reference.py`, written down once more.
"""

import json
import math
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from tqdm import tqdm

from backbones.run.files import read_json
from benchmarks import run_script

Name = Literal["resnet18", "mobilenet", "vit-tiny"]

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
    name: Name, images: Path, seed: int, epochs: float, run_dir: Path, device: str, workers: int
) -> dict[str, Any]:
    """Train by the plain loop, and return what is written into `run_dir/result.json`."""
    torch.manual_seed(seed)
    normalize = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    train_set = torchvision.datasets.ImageFolder(images / "train", transforms.Compose([*augment, *normalize]))
    test_set = torchvision.datasets.ImageFolder(images / "test", transforms.Compose(normalize))
    batch_size = 512 if name == "vit-tiny" else 256
    loader = DataLoader(
        train_set, batch_size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )
    num_steps = math.ceil(epochs * len(train_set) / batch_size)
    module = make_module(name).to(device).to(memory_format=torch.channels_last)
    if name == "vit-tiny":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, weight_decay=5e-5)
    else:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    lr = optimizer.param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps, eta_min=0.01 * lr)
    losses: list[float] = []
    with tqdm(total=num_steps, desc=f"{name}, seed {seed}", disable=None) as bar:
        while len(losses) < num_steps:
            for batch, labels in loader:
                with torch.autocast(device, torch.bfloat16):
                    logits = module(batch.to(device).contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(logits.float(), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                bar.update()
                if len(losses) == num_steps:
                    break
    result = {
        "model": name,
        "seed": seed,
        "steps": num_steps,
        "top1": evaluate(module, test_set, device),
        "losses": losses,
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "result.json").write_text(json.dumps(result))
    return result


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

    from backbones.run.metric_lines import read_metrics

    figure = Figure(figsize=(4 * len(names), 3.5), layout="constrained")
    print("| model | ours, top-1 | plain loop, top-1 | difference of the means |\n|---|---|---|---|")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        top1: dict[str, list[float]] = {"ours": [], "plain loop": []}
        for seed in seeds:
            folder, other_folder = (each / f"{name}-{seed}" for each in (ours, runs))
            if not all((each / "result.json").exists() for each in (folder, other_folder)):
                continue
            top1["ours"].append(read_json(folder / "result.json")["top1"])
            lines = [line for line in read_metrics(folder) if line["split"] == "train"]
            label = "ours" if len(top1["ours"]) == 1 else None
            axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], color="tab:blue", label=label)
            other = read_json(other_folder / "result.json")
            top1["plain loop"].append(other["top1"])
            means = torch.tensor(other["losses"]).split(10)
            label = label and "plain loop"
            steps = [min(10 * (i + 1), len(other["losses"])) for i in range(len(means))]
            axes.plot(steps, [each.mean() for each in means], color="tab:orange", ls="--", label=label)
        axes.set(title=name, xlabel="step", ylabel="training loss (nats)")
        axes.grid(alpha=0.3)
        axes.legend()
        one, two = (torch.tensor(values) for values in top1.values())
        shown = [", ".join(f"{value:.2%}" for value in values.tolist()) for values in (one, two)]
        print(f"| {name} | {shown[0]} | {shown[1]} | {100 * (one.mean() - two.mean()):+.2f} points |")
    figure.savefig(path, dpi=120)


def main(
    images: Path,
    /,
    *,
    names: tuple[Name, ...] = ("resnet18", "mobilenet", "vit-tiny"),
    seeds: tuple[int, ...] = (0, 1),
    epochs: float = 1.0,
    device: Literal["cpu", "cuda"] = "cpu",
    workers: int = 2,
    runs: Path = Path("runs/plain-loop"),
    ours: Path | None = None,
    out: Path = Path("plain-loop.png"),
) -> None:
    """Train the reference's networks by a plain loop, and compare with runs of the library.

    `images` is the extracted CIFAR-10, `train/CLASS/*` and `test/CLASS/*`. Runs that are finished in `--runs` are not
    repeated.
    With `--ours` both are compared: its folders are NAME-SEED, each made by
    `python train.py cifar10-NAME --seed SEED --data image-folder --data.root images --epochs 1 --precision bfloat16`.
    """
    for name in names:
        for seed in seeds:
            run_dir = runs / f"{name}-{seed}"
            if not (run_dir / "result.json").exists():
                result = train(name, images, seed, epochs, run_dir, device, workers)
                print(f"{name}, seed {seed}: top-1 {result['top1']:.2%}", flush=True)
    if ours is not None:
        plot(runs, ours, names, seeds, out)


if __name__ == "__main__":
    run_script(main)
