"""Which samples make which batch: a pure function of (seed, step), the same for any number of processes.

N samples, B samples of a batch, K classes.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import backbones.distributed as distributed
import backbones.random as random
import backbones.tree as tree
from backbones.data.source import Source
from backbones.errors import InputError
from backbones.random import Stream
from backbones.types import Batch

AHEAD = 2
"""Batches that are read while a step computes."""

Batches = Callable[[int], Batch]
"""`batches(step)`: the batch of any step, counted from 0, in any order."""

SampleSequence = Callable[[int, int], tuple[Tensor, Tensor]]
"""`sequence(start, length)`: index and epoch, [length] int64 each, of a stretch of the endless sequence of samples."""

Sampling = Literal["uniform", "balanced"]


def make_batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    sampling: Sampling = "uniform",
    num_steps: int | None = None,
    whole: bool = False,
) -> Batches:
    """This rank's part of the training batch of each step, or the whole batch.

    The samples of a run are one endless sequence, `uniform_sequence` or `balanced_sequence`, in which no sample has an
    epoch twice. Step `s` takes the `batch_size` of them from `s batch_size` on, and each rank its share of these, so
    nothing is dropped or seen twice.

    `batch_size` is that of all ranks together, a multiple of their number. From `num_steps` on nothing is read ahead.
    """
    rank, num_ranks = (0, 1) if whole else (distributed.rank(), distributed.world_size())
    share = batch_size // num_ranks
    key = random.fold_in(random.key(seed, device=source.labels.device), Stream.READ)
    sequence = (balanced_sequence if sampling == "balanced" else uniform_sequence)(source.labels, seed)

    def request(step: int) -> Request:
        index, epoch = sequence(step * batch_size + rank * share, share)
        return Request(index, random.sample_keys(key, step, index, epoch), epoch)

    return read_ahead(source, request, num_steps, device)


def uniform_sequence(labels: Tensor, seed: int) -> SampleSequence:
    """Epoch after epoch of all samples, each in an order of its own."""
    size = len(labels)

    @lru_cache(maxsize=2)  # a batch can reach into the next epoch
    def order(epoch: int) -> Tensor:
        permutation = torch.randperm(size, generator=random.generator(seed, Stream.ORDER, epoch))
        return permutation.to(labels.device, non_blocking=True)

    def sequence(start: int, length: int) -> tuple[Tensor, Tensor]:
        epochs = torch.arange(start, start + length, device=labels.device) // size
        parts = []
        while length > 0:
            epoch, position = divmod(start, size)
            part = order(epoch)[position : position + length]
            parts.append(part)
            start, length = start + len(part), length - len(part)
        return torch.cat(parts), epochs

    return sequence


def balanced_sequence(labels: Tensor, seed: int) -> SampleSequence:
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
        round, i = divmod(position, len(classes))
        k = order(len(classes), round)[i]
        epoch, j = divmod(round, len(classes[k]))
        return classes[k][order(len(classes[k]), epoch, k)[j]], epoch

    def sequence(start: int, length: int) -> tuple[Tensor, Tensor]:
        samples = torch.tensor([sample(position) for position in range(start, start + length)])  # [length, 2]
        index, epochs = samples.T.contiguous().to(labels.device, non_blocking=True)
        return index, epochs

    return sequence


def eval_batches(source: Source, *, batch_size: int, device: torch.device) -> Iterator[Batch]:
    """This rank's part of a split, each sample once over all ranks; the last batch is padded with rows of weight 0."""
    share = -(-min(batch_size, source.size) // distributed.world_size())  # rounded up
    own = torch.arange(source.size, device=source.labels.device)[distributed.rank() :: distributed.world_size()]
    parts, key = own.split(share), random.key(0, device=source.labels.device)

    def request(i: int) -> Request:
        padded = F.pad(parts[i], (0, share - len(parts[i])))  # with sample 0
        return Request(padded, random.fold_in(key, padded), torch.zeros_like(padded))

    batches = read_ahead(source, request, len(parts), device)
    for i, part in enumerate(parts):
        yield batches(i)._replace(weight=(torch.arange(share, device=device) < len(part)).to(torch.float32))


class Request(NamedTuple):
    """The samples of a batch, before they are read."""

    index: Tensor  # type: ignore[assignment]  # tuple.index is not needed
    """[B] int64."""
    keys: Tensor
    """[B] int64, what the source draws from while it reads."""
    epoch: Tensor
    """[B] int64."""


def read_ahead(
    source: Source, request: Callable[[int], Request], num_steps: int | None, device: torch.device
) -> Batches:
    """The batch of any step. Where a source reads in other processes, they read the next ones while a step computes.

    Args:
        source: what is read.
        request: step -> its samples.
        num_steps: nothing is read ahead from this step on; None for no end.
        device: where the batches are sent.
    """
    started: dict[int, tuple[Request, Callable[[], Tensor]]] = {}

    def start(step: int) -> tuple[Request, Callable[[], Tensor]]:
        samples = request(step)
        if source.start is None:
            return samples, partial(source.read, samples.index, samples.keys)
        return samples, source.start(samples.index, samples.keys)

    def batch_of(step: int) -> Batch:
        nonlocal started
        last = step if source.start is None else step + AHEAD
        if num_steps is not None:
            last = max(step, min(last, num_steps - 1))
        started = {each: started.get(each) or start(each) for each in range(step, last + 1)}
        samples, images = started.pop(step)
        labels, weight = source.labels[samples.index], torch.ones(len(samples.index), device=device)
        batch = Batch(images(), labels, None, weight, samples.index, samples.epoch)
        got, wanted = (batch.images.dtype, batch.images.shape), (torch.uint8, (len(labels), *source.info.image_shape))
        if got != wanted:
            raise InputError(f"the data set reads images of {got[0]} {[*got[1]]}; wanted {wanted[0]} {[*wanted[1]]}")
        return tree.map(partial(_send, device=device), batch)

    return batch_of


def _send(leaf: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. A GPU reads pinned memory while Python goes on, and waits for no earlier step."""
    if leaf.is_cpu and device.type == "cuda":
        leaf = leaf.pin_memory()
    return leaf.to(device, non_blocking=True)
