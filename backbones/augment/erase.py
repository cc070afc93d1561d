"""Cutout and random erasing. B images, C channels, H and W height and width."""

from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import Doc

import backbones.random as random
from backbones.augment.base import Augment, chain, of_images, per_image
from backbones.augment.geometry import Flip, Padding, Ratio, Scale, check_order, crop_flip
from backbones.ranges import Count, Range, checked

Level = Annotated[int, Range("[0, 255]")]


@checked
def cutout(
    *,
    size: Annotated[Count, Doc("side of the square, pixels")] = 16,
    fill: Annotated[Level, Doc("value of its pixels")] = 127,
    padding: Padding = 0,
    flip: Flip = False,
) -> Augment:
    """Fill a square centred anywhere in the image; it may reach over the border (arXiv 1708.04552, section 3.2).

    In the paper its side is 16 pixels for CIFAR-10 and 8 for CIFAR-100, and it is filled by the mean of the data set,
    which is 0 after normalization.
    """

    def cut(keys: Tensor, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        y, x = (random.randint(random.fold_in(keys, i), n) for i, n in enumerate((height, width)))
        square = inside(images, y - size // 2, x - size // 2, size, size)
        return torch.where(square, fill, images)

    return chain(crop_flip(padding=padding, flip=flip), of_images(cut))


@checked
def random_erasing(
    *,
    probability: Annotated[float, Range("[0, 1]"), Doc("that a part of an image is erased")] = 0.5,
    scale: Scale = (0.02, 0.33),
    ratio: Ratio = (0.3, 3.3),
    fill: Annotated[Level | None, Doc("value of its pixels; None for a random one of each pixel and channel")] = None,
    padding: Padding = 0,
    flip: Flip = False,
) -> Augment:
    """Fill a random rectangle inside the image (arXiv 1708.04896, algorithm 1), drawn as in `resized_crop`.

    Raises:
        InputError: a number is out of its range, or a smallest one is above the largest.
    """
    check_order(scale=scale, ratio=ratio)

    def erase(keys: Tensor, images: Tensor) -> Tensor:
        keys_erase, keys_rectangle, keys_levels = (random.fold_in(keys, part) for part in (0, 1, 2))
        erased = inside(images, *random.rectangle(keys_rectangle, images.shape[2], images.shape[3], scale, ratio))
        erased = erased & per_image(random.uniform(keys_erase) < probability)
        return torch.where(erased, random_levels(keys_levels, images) if fill is None else fill, images)

    return chain(crop_flip(padding=padding, flip=flip), of_images(erase))


def inside(images: Tensor, top: Tensor, left: Tensor, rows: Tensor | int, columns: Tensor | int) -> Tensor:
    """Which pixels lie in a rectangle of each image, [B, 1, H, W] bool; it may reach over the border."""
    y, x = (torch.arange(n, device=images.device) for n in images.shape[2:])
    in_rows = (y >= top[:, None]) & (y < (top + rows)[:, None])
    in_columns = (x >= left[:, None]) & (x < (left + columns)[:, None])
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def random_levels(keys: Tensor, images: Tensor) -> Tensor:
    """Independent random levels for every pixel and channel, [B, C, H, W] of the dtype of `images`."""
    size = images[0].numel()
    numbers = torch.arange((size + 7) // 8, device=images.device)
    # not fold_in(keys, numbers): inductor multiplies the numbers in Python, where they do not wrap around at 64 bits
    eight = random.fold_in(keys[:, None] ^ numbers, 0)  # levels in each number of 64 bits
    return eight.view(torch.uint8)[:, :size].reshape(images.shape).to(images.dtype)
