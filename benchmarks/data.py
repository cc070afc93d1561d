"""Speed of the input pipeline, beside a DataLoader: `python -m benchmarks.data --help`."""

from collections.abc import Iterator
from functools import partial
from itertools import count, islice

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import backbones.random as random
from backbones.augment import crop_flip, make_normalize
from backbones.data import in_memory, make_batches
from backbones.types import CPU
from benchmarks import median_seconds, run_script

SIZE = 10_000


def main(*, batch_size: int = 128, steps: int = 50, rounds: int = 5, workers: tuple[int, ...] = (0, 1, 2)) -> None:
    """Images a second of 32x32 images in memory, cropped, flipped and normalized, in batches for the first layer.

    Ours are whole batches in tensor arithmetic, in the process that trains. The others are torchvision's transforms of
    one image after the other (PIL, as in most CIFAR scripts) behind a DataLoader with `workers` processes. Medians of
    `rounds` interleaved measurements of `steps` batches.
    """
    images = torch.randint(256, (SIZE, 3, 32, 32), dtype=torch.uint8, generator=random.generator(0))
    labels = torch.arange(SIZE) % 10
    pipelines = {"ours": ours(images, labels, batch_size)}
    for number in workers:
        pipelines[f"torchvision, {number} workers"] = theirs(images, labels, batch_size, number)
    for pipeline in pipelines.values():
        next(pipeline)  # starts the workers

    def read(pipeline: Iterator[Tensor]) -> None:
        for _ in islice(pipeline, steps):
            pass

    found = median_seconds({name: partial(read, each) for name, each in pipelines.items()}, rounds)
    rates = {name: batch_size * steps / each for name, each in found.items()}
    print("| pipeline | images/s | ours over it |\n|---|--:|--:|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rates['ours'] / rate:.1f} |")


def ours(images: Tensor, labels: Tensor, batch_size: int) -> Iterator[Tensor]:
    """The part of `make_train_step` before the model."""
    dataset = in_memory((images, labels), (images[:10], labels[:10]), tuple("0123456789"), CPU)
    batches = make_batches(dataset.train, seed=0, batch_size=batch_size, device=CPU)
    augment, normalize = crop_flip(), make_normalize(dataset.info.mean, dataset.info.std, CPU)
    key = random.key(0)
    for step in count():
        batch = batches(step)
        yield normalize(augment(random.sample_keys(key, step, batch.index, batch.epoch), batch).images)


def theirs(images: Tensor, labels: Tensor, batch_size: int, workers: int) -> Iterator[Tensor]:
    """The usual script."""
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ]
    )
    pictures = [transforms.functional.to_pil_image(image) for image in images]

    class Pictures(Dataset):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return transform(pictures[i]), int(labels[i])

    loader = DataLoader(
        Pictures(), batch_size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    while True:
        for batch, _ in loader:
            yield batch.contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    run_script(main)
