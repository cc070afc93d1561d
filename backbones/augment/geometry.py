"""Crops and flips. B images, C channels, H and W height and width."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

import backbones.random as random
from backbones.augment.base import Augment, chain, identity
from backbones.errors import Range, checked
from backbones.types import Batch


@checked
def crop_flip(*, padding: Annotated[int, Range("[0, inf)")] = 4, flip: bool = True) -> Augment:
    """A random crop of the padded image, then a random horizontal flip.

    Args:
        padding: largest shift, pixels.
        flip: whether images are flipped too; a mirrored digit is another one.
    """
    return chain(random_crop(padding), random_flip() if flip else identity())


def random_crop(padding: int) -> Augment:
    """Pad with zeros by `padding` pixels on each side and crop to the old size at a random position."""
    if padding == 0:
        return identity()

    def augment(keys: Tensor, batch: Batch) -> Batch:
        images = batch.images
        padded = F.pad(images, (padding, padding, padding, padding))
        top = random.randint(random.fold_in(keys, 0), 2 * padding + 1)
        left = random.randint(random.fold_in(keys, 1), 2 * padding + 1)
        rows = top[:, None] + torch.arange(images.shape[2], device=images.device)  # [B, H]
        columns = left[:, None] + torch.arange(images.shape[3], device=images.device)  # [B, W]
        sample = torch.arange(len(images), device=images.device)
        cropped = padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]
        return batch._replace(images=cropped.permute(0, 3, 1, 2))

    return augment


def random_flip() -> Augment:
    """Flip horizontally with probability one half."""

    def augment(keys: Tensor, batch: Batch) -> Batch:
        flip = random.uniform(keys) < 0.5
        images = torch.where(flip[:, None, None, None], batch.images.flip(3), batch.images)
        return batch._replace(images=images)

    return augment
