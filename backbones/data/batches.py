"""Which samples make which batch: a pure function of (seed, step), the same for any number of processes.

N samples, B samples of a batch, K classes.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import backbones.distributed as distributed
import backbones.random as random
from backbones.data.source import Source
from backbones.random import Stream
from backbones.types import Batch

Batches = Callable[[int], Batch]
"""`batches(step)`: the batch of any step, counted from 0, in any order."""

SampleSequence = Callable[[int, int], tuple[Tensor, Tensor]]
"""`sequence(start, length)`: index and epoch, [length] int64 each, of a stretch of the endless sequence of samples."""

Sampling = Literal["uniform", "balanced"]


def make_batches(
    source: Source, *, seed: int, batch_size: int, device: torch.device, sampling: Sampling = "uniform"
) -> Batches:
    """This rank's part of the training batch of each step.

    The samples of a run are one endless sequence, `uniform_sequence` or `balanced_sequence`. Step `s` takes the
    `batch_size` of them from `s batch_size` on, and each rank its share of these, so nothing is dropped or seen twice.

    `batch_size` is that of all ranks together, a multiple of their number.
    """
    share = batch_size // distributed.world_size()
    key = random.fold_in(random.key(seed, device=device), Stream.READ)
    make_sequence = balanced_sequence if sampling == "balanced" else uniform_sequence
    sequence = make_sequence(source.labels, seed=seed, device=device)

    def batches(step: int) -> Batch:
        index, epoch = sequence(step * batch_size + distributed.rank() * share, share)
        return _read(source, index, random.sample_keys(key, step, index), epoch)

    return batches


def uniform_sequence(labels: Tensor, *, seed: int, device: torch.device) -> SampleSequence:
    """Epoch after epoch of all samples, each in an order of its own."""
    size = len(labels)

    def sequence(start: int, length: int) -> tuple[Tensor, Tensor]:
        epochs = torch.arange(start, start + length, device=device) // size
        parts = []
        while length > 0:
            epoch, position = divmod(start, size)
            part = epoch_order(seed, epoch, size, device)[position : position + length]
            parts.append(part)
            start, length = start + len(part), length - len(part)
        return torch.cat(parts), epochs

    return sequence


@lru_cache(maxsize=2)  # a batch can reach into the next epoch
def epoch_order(seed: int, epoch: int, size: int, device: torch.device) -> Tensor:
    """The order of `size` samples in one epoch, [size] int64: a permutation that depends on nothing else."""
    return torch.randperm(size, generator=random.generator(seed, Stream.ORDER, epoch)).to(device)


def balanced_sequence(labels: Tensor, *, seed: int, device: torch.device) -> SampleSequence:
    """Round after round of the K classes that have samples, each in an order of its own.

    So every K samples are one of each class, and round r takes the r-th sample of each. Those of one class come epoch
    after epoch too: none is repeated before all of its class were seen.
    """
    counts = torch.bincount(labels).tolist()
    classes = [part.tolist() for part in labels.argsort(stable=True).split(counts) if len(part)]

    @lru_cache(maxsize=2 * len(classes) + 2)  # the order within each class now, and that of the latest rounds
    def order(size: int, *numbers: int) -> list[int]:
        return torch.randperm(size, generator=random.generator(seed, Stream.ORDER, *numbers)).tolist()

    def sample(position: int) -> tuple[int, int]:
        round, place = divmod(position, len(classes))
        k = order(len(classes), round)[place]
        epoch, place = divmod(round, len(classes[k]))
        return classes[k][order(len(classes[k]), epoch, k)[place]], epoch

    def sequence(start: int, length: int) -> tuple[Tensor, Tensor]:
        samples = torch.tensor([sample(position) for position in range(start, start + length)])  # [length, 2]
        index, epochs = samples.T.contiguous().to(device, non_blocking=True)
        return index, epochs

    return sequence


def eval_batches(source: Source, *, batch_size: int, device: torch.device) -> Iterator[Batch]:
    """This rank's part of a split, each sample once over all ranks; the last batch is padded with rows of weight 0."""
    share = -(-min(batch_size, source.size) // distributed.world_size())  # rounded up
    index = torch.arange(source.size, device=device)[distributed.rank() :: distributed.world_size()]
    for part in index.split(share):
        padded = F.pad(part, (0, share - len(part)))  # with sample 0
        batch = _read(source, padded, random.fold_in(random.key(0, device=device), padded), torch.zeros_like(padded))
        yield batch._replace(weight=(torch.arange(share, device=device) < len(part)).to(torch.float32))


def _read(source: Source, index: Tensor, keys: Tensor, epoch: Tensor) -> Batch:
    images = source.read(index, keys).to(index.device, non_blocking=True)
    return Batch(images, source.labels[index], None, torch.ones(len(index), device=index.device), index, epoch)
