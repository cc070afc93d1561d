"""Random batches, and what every augmentation is asked."""

import torch
from torch import Tensor

import backbones.random as random
from backbones.augment import Augment
from backbones.types import Batch


def make_batch(size: int, shape: tuple[int, int, int] = (3, 8, 6)) -> Batch:
    """Noise of 10 classes, in the second epoch from row 5 on."""
    images = torch.randint(0, 256, (size, *shape), generator=random.generator(0)).to(torch.uint8)
    rows = torch.arange(size)
    return Batch(images, rows % 10, None, torch.ones(size), rows + 7, (rows >= 5).to(torch.int64))


def make_keys(size: int, seed: int = 1) -> Tensor:
    return random.fold_in(random.key(seed), torch.arange(size))


def make_smooth(size: int, shape: tuple[int, int, int] = (3, 16, 12)) -> Tensor:
    """Images [size, C, H, W] uint8 like photographs: neighbouring pixels are similar, some are black or white."""
    noise = 400 * torch.rand((size, shape[0], 4, 4), generator=random.generator(1)) - 70
    return torch.nn.functional.interpolate(noise, shape[1:], mode="bilinear").clamp(0, 255).to(torch.uint8)


def part_of(batch: Batch, rows: slice) -> Batch:
    return Batch(*(leaf if leaf is None else leaf[rows] for leaf in batch))


def check_same(got: Batch, wanted: Batch) -> None:
    """Equal to the last bit, dtypes included."""
    for name, a, b in zip(Batch._fields, got, wanted, strict=True):
        assert (a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b)), name


def check_augment(augment: Augment, batch: Batch) -> None:
    """The same on one, two and four ranks, eager and traced as one graph; the batch itself is left alone."""
    keys, before = make_keys(len(batch.images)), part_of(batch, slice(None))
    before = before._replace(images=batch.images.clone())
    whole = augment(keys, batch)
    check_same(batch, before)
    assert whole.images.shape == batch.images.shape
    for ranks in (2, 4):
        share = len(keys) // ranks
        for rank in range(ranks):
            rows = slice(rank * share, (rank + 1) * share)
            check_same(augment(keys[rows], part_of(batch, rows)), part_of(whole, rows))
    check_same(compiled(augment, "aot_eager")(keys, batch), whole)


def compiled(augment: Augment, backend: str) -> Augment:
    """As one graph, or an error."""
    torch.compiler.reset()  # else another augmentation from the same lines counts as the same function, compiled again
    return torch.compile(augment, fullgraph=True, backend=backend)
