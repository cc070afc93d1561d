"""Which samples make which batch: a pure function of (seed, step), the same for any number of ranks.

N samples, B samples of a batch, C channels, H and W height and width, K classes.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import backbones.distributed as distributed
import backbones.random as random
from backbones.types import Batch


class Split(NamedTuple):
    """One part of a data set."""

    images: Tensor
    """[N, C, H, W] uint8."""
    labels: Tensor
    """[N] int64 in [0, K)."""


class Dataset(NamedTuple):
    """A data set, held in memory as a whole."""

    train: Split
    test: Split
    class_names: tuple[str, ...]
    """K names."""
    augment: Callable[[Tensor, Tensor], Tensor]
    """`(keys [B] int64, images [B, C, H, W]) -> images`, for training."""

    def to(self, device: torch.device) -> "Dataset":
        """The same data set on another device."""
        train, test = (Split(*(leaf.to(device) for leaf in split)) for split in (self.train, self.test))
        return self._replace(train=train, test=test)


def channel_statistics(split: Split) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over all pixels of a split, [C] float32 each, in [0, 255]."""
    channels = split.images.unbind(1)
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in channels]).cpu()
    values = torch.arange(256, dtype=torch.float64)  # exact, and without a float copy of every pixel
    frequencies = counts.to(torch.float64) / counts.sum(dim=1, keepdim=True)  # [C, 256]
    mean = frequencies @ values
    variance = (frequencies * (values - mean[:, None]) ** 2).sum(dim=1)
    return mean.to(split.images.device, torch.float32), variance.sqrt().to(split.images.device, torch.float32)


def train_batch(split: Split, *, seed: int, step: int, batch_size: int) -> Batch:
    """This rank's part of the batch of a step.

    The samples of a run are one endless row: epoch after epoch, each in an order of its own. Step `s` takes the
    `batch_size` of them from `s batch_size` on, and each rank its share of these, so nothing is dropped or seen twice.

    Args:
        split: the training split.
        seed: seed of the run.
        step: steps done so far.
        batch_size: samples over all ranks; a multiple of their number.
    """
    size = len(split.labels)
    share = batch_size // distributed.world_size()
    start = step * batch_size + distributed.rank() * share
    parts = []
    while share > 0:
        epoch, position = divmod(start, size)
        part = epoch_order(seed, epoch, size, split.labels.device)[position : position + share]
        parts.append(part)
        start, share = start + len(part), share - len(part)
    index = torch.cat(parts)
    return Batch(split.images[index], split.labels[index], index)


@lru_cache(maxsize=2)  # a batch can reach into the next epoch
def epoch_order(seed: int, epoch: int, size: int, device: torch.device) -> Tensor:
    """The order of `size` samples in one epoch, [size] int64: a permutation that depends on nothing else."""
    return torch.randperm(size, generator=random.generator(seed, 1, epoch)).to(device)


def eval_batches(split: Split, *, batch_size: int) -> Iterator[Batch]:
    """This rank's part of a split, each sample once over all ranks; the last batch is filled up with rows labelled -1.

    Args:
        split: the split.
        batch_size: samples a batch over all ranks.
    """
    share = min(batch_size, len(split.labels))
    share = -(-share // distributed.world_size())  # rounded up
    index = torch.arange(len(split.labels), device=split.labels.device)[distributed.rank() :: distributed.world_size()]
    for part in index.split(share):
        padding = share - len(part)
        labels = F.pad(split.labels[part], (0, padding), value=-1)
        part = F.pad(part, (0, padding))  # row 0 again: its label is what says that it does not count
        yield Batch(split.images[part], labels, part)
