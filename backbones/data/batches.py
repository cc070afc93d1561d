"""Which samples make which batch: a pure function of (seed, step), the same for any number of processes.

N samples, B samples of a batch.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

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


def make_batches(source: Source, *, seed: int, batch_size: int, device: torch.device) -> Batches:
    """This rank's part of the training batch of each step.

    The samples of a run are one endless sequence: epoch after epoch, each in an order of its own. Step `s` takes the
    `batch_size` of them from `s batch_size` on, and each rank its share of these, so nothing is dropped or seen twice.

    `batch_size` is that of all ranks together, a multiple of their number.
    """
    share = batch_size // distributed.world_size()
    key = random.fold_in(random.key(seed, device=device), Stream.READ)

    def batches(step: int) -> Batch:
        start = step * batch_size + distributed.rank() * share
        index = _sequence(start, share, seed=seed, size=source.size, device=device)
        epoch = torch.arange(start, start + share, device=device) // source.size
        return _read(source, index, random.sample_keys(key, step, index), epoch)

    return batches


def _sequence(start: int, length: int, *, seed: int, size: int, device: torch.device) -> Tensor:
    """A stretch of the endless sequence of samples, [length] int64."""
    parts = []
    while length > 0:
        epoch, position = divmod(start, size)
        part = epoch_order(seed, epoch, size, device)[position : position + length]
        parts.append(part)
        start, length = start + len(part), length - len(part)
    return torch.cat(parts)


@lru_cache(maxsize=2)  # a batch can reach into the next epoch
def epoch_order(seed: int, epoch: int, size: int, device: torch.device) -> Tensor:
    """The order of `size` samples in one epoch, [size] int64: a permutation that depends on nothing else."""
    return torch.randperm(size, generator=random.generator(seed, Stream.ORDER, epoch)).to(device)


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
