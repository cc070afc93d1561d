"""Cost of every augmentation beside torchvision's: `python -m benchmarks.augment --help`."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from torchvision.transforms import v2
from tyro.conf import Positional, arg

import backbones.machine as machine
import backbones.random as random
from backbones.augment import AUGMENTS
from backbones.component import use
from backbones.errors import check_known
from backbones.types import Batch
from benchmarks import median_seconds, run_script

COUNTERPARTS: dict[str, Callable[[int], v2.Transform]] = {
    "crop-flip": lambda size: v2.Compose([v2.RandomCrop(size, padding=4), v2.RandomHorizontalFlip()]),
    "alternating-flip": lambda size: v2.RandomHorizontalFlip(),
    "resized-crop": lambda size: v2.RandomResizedCrop(size),
    "random-rotation": lambda size: v2.RandomRotation(15),
    "color-jitter": lambda size: v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
    "random-grey": lambda size: v2.RandomGrayscale(0.2),
    "cutout": lambda size: v2.RandomErasing(1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0)),  # the nearest that it has
    "random-erasing": lambda size: v2.RandomErasing(value="random"),
    "rand-augment": lambda size: v2.RandAugment(),
    "trivial-augment": lambda size: v2.TrivialAugmentWide(),
    "auto-augment": lambda size: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
    "mixup": lambda size: v2.MixUp(alpha=0.2, num_classes=10),
    "cutmix": lambda size: v2.CutMix(num_classes=10),
}
"""Name -> torchvision's, for images of a size."""
Call = Callable[[], object]


def main(
    names: Positional[tuple[str, ...]] = (),
    /,
    *,
    batch_size: int = 128,
    image_size: int = 32,
    rounds: int = 20,
    compile: bool = False,
    device: str = "cpu",
    json_file: Annotated[Path | None, arg(name="json")] = None,
) -> None:
    """Microseconds an image of every augmentation, or of those named, beside torchvision's v2.

    Ours are called on whole batches of uint8 images, and draw numbers for each image. Torchvision's draw numbers for
    each call: called on one image after the other, as a data set does, or on the whole batch, whose images are then all
    augmented alike. Medians of `rounds` interleaved calls.

    Args:
        names: names of augmentations; none for all.
        batch_size: images per batch.
        image_size: height and width of an image, pixels.
        rounds: calls of each.
        compile: measure ours compiled by torch.compile too, which takes up to a minute for each.
        device: where the batches lie.
        json_file: file to write the rows to.
    """
    machine.keep_memory()  # as in a run
    batch = random_batch(batch_size, image_size, device)
    rows = []
    for name in names or AUGMENTS:
        calls = make_calls(check_known("augment", name, AUGMENTS), batch, compile=compile)
        found = median_seconds(calls, rounds, warmup=1)  # the first compiles
        rows.append({"name": name, **{key: 1e6 * each / batch_size for key, each in found.items()}})
    columns = ["ours", *(["compiled"] if compile else []), "v2, image by image", "v2, one draw a batch"]
    print(f"| µs an image of {image_size}x{image_size} | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}")
    for row in rows:
        print(f"| {row['name']} | {' | '.join(f'{row[c]:.1f}' if c in row else '' for c in columns)} |")
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


def random_batch(size: int, image_size: int, device: str) -> Batch:
    """Noise of 10 classes."""
    images = torch.randint(256, (size, 3, image_size, image_size), dtype=torch.uint8, generator=random.generator(0))
    index = torch.arange(size, device=device)
    return Batch(images.to(device), index % 10, None, torch.ones(size, device=device), index, torch.zeros_like(index))


def make_calls(name: str, batch: Batch, *, compile: bool) -> dict[str, Call]:
    """Column -> a call that augments the batch."""
    images, keys = batch.images, random.fold_in(random.key(0, device=batch.images.device), batch.index)
    augment = use(AUGMENTS[name]).make(num_classes=10, device=images.device)
    calls: dict[str, Call] = {"ours": partial(augment, keys, batch)}
    if compile:
        torch.compiler.reset()  # else another augmentation from the same lines counts as the same function
        calls["compiled"] = partial(torch.compile(augment, fullgraph=True), keys, batch)
    if name not in COUNTERPARTS:
        return calls
    transform = COUNTERPARTS[name](images.shape[2])
    if name in ("mixup", "cutmix"):
        return {**calls, "v2, one draw a batch": lambda: transform(images.to(torch.float32), batch.labels)}
    calls["v2, image by image"] = lambda: torch.stack([transform(image) for image in images])
    return {**calls, "v2, one draw a batch": lambda: transform(images)}


if __name__ == "__main__":
    run_script(main)
