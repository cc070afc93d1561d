"""airbench94 as published, in plain torch, on CIFAR-10: what `experiments/speedrun.py` is measured beside.

Keller Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498: whitening filters, alternating flip,
SGD with scaled bias rates and lookahead, 9.9 epochs of batches of 1,024, multi-crop evaluation. The arithmetic of the
model is bfloat16 by autocast, which is what the paper's float16 comes to here.

    python -m benchmarks.airbench cifar10-jpeg.tar --seeds 0 1 2 3 4
"""

import math
import time
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.data import image_tar
from benchmarks import run_script

EPOCHS, BATCH_SIZE, MOMENTUM = 9.9, 1024, 0.85
LEARNING_RATE = 11.5 / (BATCH_SIZE * (1 + 1 / (1 - MOMENTUM)))
"""For the sum of the losses over the batch."""
DECAY = 0.0153 / (1 + 1 / (1 - MOMENTUM))
"""Decoupled: the share of a weight that each step at full learning rate takes away."""
BIAS_SCALE, LABEL_SMOOTHING, WHITEN_BIAS_EPOCHS = 64, 0.2, 3


class Group(nn.Module):
    """Two 3x3 convolutions, the first followed by a 2x2 max-pool."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding="same", bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding="same", bias=False)
        self.norm1, self.norm2 = (nn.BatchNorm2d(outputs, eps=1e-12, momentum=0.4) for _ in range(2))
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])
        for norm in (self.norm1, self.norm2):
            norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class Net(nn.Module):
    """The network of airbench94."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.groups = nn.Sequential(Group(24, 64), Group(64, 256), Group(256, 256))
        self.head = nn.Linear(256, 10, bias=False)
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2)
        self.whiten.weight.data.copy_(torch.cat([filters, -filters]))
        self.whiten.weight.requires_grad_(False)
        self.whiten.bias.data.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(F.gelu(self.whiten(x)))
        return self.head(F.max_pool2d(x, 3).flatten(1)) / 9


def load(path: Path, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, normalized float32, and labels; test images and labels; on the device."""
    dataset = image_tar(root=str(path))
    mean, std = (torch.tensor(values)[:, None, None] for values in (dataset.info.mean, dataset.info.std))
    splits = []
    for source in dataset:
        index = torch.arange(source.size)
        images = (source.read(index, torch.zeros_like(index)).float() - mean) / std
        splits += [images.contiguous(memory_format=torch.channels_last).to(device), source.labels.to(device)]
    return splits[0], splits[1], splits[2], splits[3]


def shifted(images: Tensor) -> Tensor:
    """Each image shifted by up to two pixels both ways, padded by reflection."""
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    result = torch.empty_like(images)
    shifts = torch.randint(0, 5, (len(images), 2), device=images.device)
    for y in range(5):
        for x in range(5):
            chosen = (shifts[:, 0] == y) & (shifts[:, 1] == x)
            result[chosen] = padded[chosen, :, y : y + 32, x : x + 32]
    return result


def train(images: Tensor, labels: Tensor, seed: int) -> Net:
    """One run."""
    torch.manual_seed(seed)
    net = Net(images[torch.randperm(len(images))[:5000]].cpu()).to(images.device)
    net = net.to(memory_format=torch.channels_last).train()
    norm_biases = [norm.bias for norm in net.modules() if isinstance(norm, nn.BatchNorm2d)]
    others = [each for each in net.parameters() if each.requires_grad and not any(each is bias for bias in norm_biases)]
    groups = [
        {"params": norm_biases, "lr": BIAS_SCALE * LEARNING_RATE, "weight_decay": DECAY / (BIAS_SCALE * LEARNING_RATE)},
        {"params": others, "lr": LEARNING_RATE, "weight_decay": DECAY / LEARNING_RATE},
    ]
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True, fused=True)
    steps_per_epoch = len(images) // BATCH_SIZE
    num_steps = math.ceil(EPOCHS * steps_per_epoch)

    def factor(step: int) -> float:
        x, peak = step / num_steps, 0.23
        return 0.2 + 0.8 * x / peak if x < peak else 1 - 0.93 * (x - peak) / (1 - peak)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    slow = {name: leaf.detach().clone() for name, leaf in net.state_dict().items() if leaf.is_floating_point()}

    def look_ahead(decay: float) -> None:
        for name, leaf in net.state_dict().items():
            if name in slow:
                leaf.copy_(slow[name].lerp_(leaf, 1 - decay))

    step, first_flip = 0, torch.rand(len(images), device=images.device) < 0.5
    for epoch in range(math.ceil(EPOCHS)):
        net.whiten.bias.requires_grad_(epoch < WHITEN_BIAS_EPOCHS)  # type: ignore[union-attr]
        flips = first_flip ^ (epoch % 2 == 1)
        order = torch.randperm(len(images), device=images.device)[: steps_per_epoch * BATCH_SIZE]
        for index in order.split(BATCH_SIZE):
            batch = shifted(torch.where(flips[index, None, None, None], images[index].flip(3), images[index]))
            with torch.autocast(images.device.type, torch.bfloat16):
                logits = net(batch.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels[index], label_smoothing=LABEL_SMOOTHING, reduction="sum")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % 5 == 0:
                look_ahead(0.95**5 * (step / num_steps) ** 3)
            if step == num_steps:
                break
    look_ahead(1.0)
    return net


@torch.no_grad()
def evaluate(net: Net, images: Tensor, labels: Tensor, *, tta: bool) -> float:
    """Top-1 accuracy in [0, 1], with test-time augmentation or without."""
    net.eval()
    correct = 0
    for batch, truth in zip(images.split(2000), labels.split(2000), strict=True):
        with torch.autocast(images.device.type, torch.bfloat16):
            if tta:
                padded = F.pad(batch, (1, 1, 1, 1), mode="reflect")
                views = [(0.5, batch), (0.25, padded[:, :, :-2, :-2]), (0.25, padded[:, :, 2:, 2:])]
                logits = torch.stack([weight * (net(view) + net(view.flip(3))) / 2 for weight, view in views]).sum(0)
            else:
                logits = net(batch)
        correct += (logits.argmax(1) == truth).sum().item()
    return correct / len(images)


def main(path: Path, /, *, seeds: tuple[int, ...] = (0,), device: Literal["cpu", "cuda"] = "cpu") -> None:
    """Train airbench94 on the CIFAR-10 in a tar of image files, once for each seed, and print accuracies and times."""
    images, labels, test_images, test_labels = load(path, device)
    for seed in seeds:
        start = time.perf_counter()
        net = train(images, labels, seed)
        if device == "cuda":
            torch.cuda.synchronize()
        trained = time.perf_counter() - start
        with_tta = evaluate(net, test_images, test_labels, tta=True)
        seconds = time.perf_counter() - start
        without = evaluate(net, test_images, test_labels, tta=False)
        print(
            f"seed {seed}: top-1 {with_tta:.2%} with and {without:.2%} without test-time augmentation; {trained:.1f} s "
            f"of training, {seconds:.1f} s with the evaluation",
            flush=True,
        )


if __name__ == "__main__":
    run_script(main)
