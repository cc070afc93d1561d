"""Random numbers as pure functions of integer keys, as in JAX, written in plain tensor arithmetic.

A key is an int64 tensor of any shape. `fold_in` derives a new key from a key and a number, elementwise, so a tensor of
sample indices makes a tensor of keys, one per sample. Nothing is remembered between calls: the numbers are the same
on every device, under any number of processes, compiled or not, and after a resume.

The mixing function is SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
2014, with the constants of its `mix64` variant 13 (Stafford). It is meant for augmentation, not for secrets.
"""

from enum import IntEnum
from math import pi

import torch
from torch import Tensor


class Stream(IntEnum):
    """Streams of random numbers, each independent of the others for one seed."""

    INIT = 0
    """Initial parameters."""
    ORDER = 1
    """Order of the samples in an epoch."""
    DROPOUT = 2
    """What the model draws from torch's generator."""
    READ = 3
    """What a data source draws for each sample it reads."""


def _signed(constant: int) -> int:
    """The int64 with the bits of an unsigned 64-bit constant; tensor arithmetic wraps around."""
    return constant - (1 << 64) if constant >= 1 << 63 else constant


_GOLDEN_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def key(seed: int, *, device: torch.device | str = "cpu") -> Tensor:
    """The 0-D int64 key that a run starts from."""
    return fold_in(torch.tensor(seed, dtype=torch.int64, device=device), 0)


def fold_in(key: Tensor, number: Tensor | int) -> Tensor:
    """A new key from a key and an integer; both broadcast. For one key, different numbers give different keys."""
    number = number if isinstance(number, Tensor) else key.new_full((), number)
    z = key + (number + 1) * _GOLDEN_GAMMA
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def sample_keys(key: Tensor, step: Tensor | int, index: Tensor, epoch: Tensor) -> Tensor:
    """One key for each sample of a step, [B] int64: different at every step and for each repeat of a sample in a batch.

    Args:
        key: 0-D int64.
        step: steps done so far.
        index: [B] int64, of the samples in their split, below 2^32.
        epoch: [B] int64, how often each sample was drawn before; see `make_batches`.
    """
    return fold_in(fold_in(key, step), (epoch << 32) + index)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own `>>` repeats the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def uniform(key: Tensor) -> Tensor:
    """float32 in [0, 1), one for each key: its upper 24 bits."""
    return _shift_right(key, 40).to(torch.float32) * 2.0**-24


def randint(key: Tensor, high: Tensor | int) -> Tensor:
    """int64 in [0, high), one for each key; both broadcast. `high` is small beside 2^24."""
    return (uniform(key) * high).to(torch.int64)


def normal(key: Tensor) -> Tensor:
    """float32 of mean 0 and variance 1, one for each key (Box and Muller, 1958)."""
    radius = torch.sqrt(-2 * torch.log1p(-uniform(fold_in(key, 0))))
    return radius * torch.cos(2 * pi * uniform(fold_in(key, 1)))


def rectangle(
    key: Tensor, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A rectangle in an image, one for each key: top, left, height and width, int64 (arXiv 1409.4842, section 6).

    Its area, as a share of the image's, is uniform in `scale`, and the logarithm of its width over its height is
    uniform in the part of log `ratio` with which it fits into the image. If there is none, as for a large area of a
    long image, it takes the whole shorter side, and is longer than `ratio` allows or smaller than `scale`. torchvision
    draws both up to ten times, until it fits, so that large areas are rarer.
    """
    area = scale[0] + (scale[1] - scale[0]) * uniform(fold_in(key, 0))
    low = (area * (width / height)).clamp(min=ratio[0]).log()
    high = (width / height / area).clamp(max=ratio[1]).log()
    aspect = (low + (high - low) * uniform(fold_in(key, 1))).exp()
    pixels = area * (height * width)
    rows = (pixels / aspect).sqrt().round().to(torch.int64).clamp(1, height)
    columns = (pixels * aspect).sqrt().round().to(torch.int64).clamp(1, width)
    top = randint(fold_in(key, 2), height - rows + 1)
    left = randint(fold_in(key, 3), width - columns + 1)
    return top, left, rows, columns


def generator(*numbers: int) -> torch.Generator:
    """A CPU generator of torch, for what is drawn on the host (initialisation, order of samples), keyed by integers."""
    return torch.Generator().manual_seed(_host_seed(*numbers))


def seed_torch(*numbers: int) -> None:
    """Reseed torch's global generators, from which layers of a model draw, such as dropout: called before each step."""
    torch.manual_seed(_host_seed(*numbers))


def _host_seed(seed: int, *numbers: int) -> int:
    folded = key(seed)
    for number in numbers:
        folded = fold_in(folded, number)
    return int(folded)
