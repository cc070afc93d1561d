"""Pure functions on whole batches of images, on the device where they lie.

`keys` are int64 [B], one random key a sample (see `random.py`): the same sample at the same step is augmented the same
way, whichever process it falls to. B images, C channels, H and W height and width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import backbones.random as random


def make_augment(*, crop_padding: int, flip: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The training augmentation `(keys, images) -> images`: a shifted crop, then perhaps a mirror."""

    def augment(keys: Tensor, images: Tensor) -> Tensor:
        if crop_padding > 0:
            images = random_crop(random.fold_in(keys, 0), images, padding=crop_padding)
        return random_flip(random.fold_in(keys, 1), images) if flip else images

    return augment


def random_crop(keys: Tensor, images: Tensor, *, padding: int) -> Tensor:
    """Pad with zeros by `padding` pixels on each side and cut the old size out again, at a random place.

    Args:
        keys: [B] int64.
        images: [B, C, H, W], any dtype.
        padding: largest shift, pixels.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (padding, padding, padding, padding))
    top = random.randint(random.fold_in(keys, 0), 2 * padding + 1)
    left = random.randint(random.fold_in(keys, 1), 2 * padding + 1)
    rows = top[:, None] + torch.arange(height, device=images.device)  # [B, H]
    columns = left[:, None] + torch.arange(width, device=images.device)  # [B, W]
    sample = torch.arange(len(images), device=images.device)
    cropped = padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]
    return cropped.permute(0, 3, 1, 2)


def random_flip(keys: Tensor, images: Tensor) -> Tensor:
    """Mirror left and right with probability one half.

    Args:
        keys: [B] int64.
        images: [B, C, H, W], any dtype.
    """
    flip = random.uniform(keys) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(3), images)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(image - mean) / std for each channel, float32 in channels_last memory, as convolutions are fastest.

    Args:
        images: [B, C, H, W] uint8 in [0, 255].
        mean: [C] float32, on the scale of the images.
        std: [C] float32, likewise.
    """
    normalized = (images.to(torch.float32) - mean[:, None, None]) / std[:, None, None]
    return normalized.contiguous(memory_format=torch.channels_last)
