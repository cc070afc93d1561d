"""Crops, flips and rotations. B images, C channels, H and W height and width."""

from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import Doc

import backbones.distributed as distributed
import backbones.random as random
from backbones.augment.base import Augment, chain, identity, of_images, of_uint8_images, per_image
from backbones.errors import InputError
from backbones.ranges import NonNegativeInt, Range, checked
from backbones.types import Batch

Padding = Annotated[NonNegativeInt, Doc("largest shift of a random crop that comes first, pixels; 0 for none")]
Flip = Annotated[bool, Doc("whether images are flipped at random first")]
Scale = Annotated[tuple[float, float], Range("(0, 1]"), Doc("smallest and largest area, as a fraction of the image")]
Ratio = Annotated[tuple[float, float], Range("(0, inf)"), Doc("smallest and largest width over height, log-uniform")]
Degrees = Annotated[float, Range("[0, 180]"), Doc("largest angle, both ways")]


@checked
def crop_flip(*, padding: NonNegativeInt = 4, flip: bool = True) -> Augment:
    """A random crop of the padded image, then a random horizontal flip.

    Args:
        padding: largest shift, pixels.
        flip: whether images are flipped too; a mirrored digit is another one.
    """
    return chain(random_crop(padding), random_flip() if flip else identity())


@checked
def random_crop(padding: NonNegativeInt, *, reflect: bool = False) -> Augment:
    """Pad by `padding` pixels on each side, and crop to the old size at a random position.

    Args:
        padding: largest shift, pixels.
        reflect: whether the border is a reflection of the image; else it is 0.

    Raises:
        InputError: `padding` is below 0; or, when called, images are too small for their reflection.
    """
    if padding == 0:
        return identity()

    def crop(keys: Tensor, images: Tensor) -> Tensor:
        top, left = (random.randint(random.fold_in(keys, i), 2 * padding + 1) - padding for i in (0, 1))
        height, width = images.shape[2:]
        rows = top[:, None, None] + torch.arange(height, device=images.device)[:, None]
        columns = left[:, None, None] + torch.arange(width, device=images.device)
        if reflect:
            if padding >= min(height, width):
                raise InputError(
                    f"padding is {padding}, and images of {height}x{width} are reflected by at most "
                    f"{min(height, width) - 1} pixels; give less"
                )
            rows, columns = _reflected(rows, height), _reflected(columns, width)
        return pixels_at(images, rows, columns)

    return of_images(crop)


def _reflected(position: Tensor, size: int) -> Tensor:
    """Positions outside of 0 .. size - 1, reflected about the first or the last pixel."""
    return size - 1 - (size - 1 - position.abs()).abs()


def random_flip() -> Augment:
    """Flip horizontally with probability one half."""
    return of_images(lambda keys, images: _flip(images, random.uniform(keys) < 0.5))


@checked
def alternating_flip(*, padding: Padding = 0, reflect: bool = False) -> Augment:
    """Flip each image in every second epoch, and half of the images in the first one (arXiv 2404.00498, section 3.6).

    Two epochs in a row show each image both ways, where random flips repeat half of them. Which images come first
    flipped is a function of their index alone.

    Args:
        padding: largest shift of a random crop that comes first, pixels; 0 for none.
        reflect: whether the border of the crop is a reflection of the image, as in the paper; else it is 0.

    Raises:
        InputError: as `random_crop`.
    """
    if reflect and padding == 0:
        distributed.warn0_once("--augment.reflect has no effect with a padding of 0")

    def flip(keys: Tensor, batch: Batch) -> Batch:
        first = random.uniform(random.fold_in(torch.zeros_like(batch.index), batch.index)) < 0.5
        return batch._replace(images=_flip(batch.images, first ^ (batch.epoch % 2 == 1)))

    return chain(random_crop(padding, reflect=reflect), flip)


def _flip(images: Tensor, rows: Tensor) -> Tensor:
    """Flip horizontally the images where `rows` [B] bool is true."""
    return torch.where(per_image(rows), images.flip(3), images)


@checked
def resized_crop(*, scale: Scale = (0.08, 1.0), ratio: Ratio = (3 / 4, 4 / 3), flip: Flip = False) -> Augment:
    """A random rectangle of the image, scaled up to the size of the image (arXiv 1409.4842, section 6); bilinear.

    The rectangle is that of `random.rectangle`, which torchvision draws a little differently.

    Raises:
        InputError: a number is out of its range; a smallest one is above the largest; or, when called, images are not
            uint8.
    """
    check_order(scale=scale, ratio=ratio)

    def crop(keys: Tensor, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        top, left, rows, columns = random.rectangle(keys, height, width, scale, ratio)
        area = 4 * height * width  # the sum of the weights
        dtype = torch.int32 if 255 * area + area // 2 < 2**31 else torch.int64  # the smaller one is faster
        corners = [
            (wy[:, :, None] * wx[:, None]).to(dtype)[:, None] * _gather(images, y[:, :, None], x[:, None])
            for y, wy in _between(top, rows, height)
            for x, wx in _between(left, columns, width)
        ]
        return (sum(corners, start=corners[0].new_full((), area // 2)) // area).to(torch.uint8)

    return chain(crop_flip(padding=0, flip=flip), of_uint8_images(crop))


def _between(start: Tensor, length: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Where the `length` [B] pixels from `start` [B] on are read to become `size`: two positions and their weights.

    Pixel i lies at (i + 1/2) length / size - 1/2, which is a multiple of 1 / (2 size): that is the unit of the weights.

    Returns:
        Two pairs of tensors [B, size] int64.
    """
    unit, last = 2 * size, length[:, None] - 1
    odd = 2 * torch.arange(size, device=length.device) + 1
    position = (odd * length[:, None] - size).clamp(min=0).minimum(unit * last)
    first = position // unit
    weight = position - unit * first
    start = start[:, None]
    return [(start + first, unit - weight), (start + (first + 1).minimum(last), weight)]


def check_order(**ranges: tuple[float, float]) -> None:
    """Raise InputError unless each is (smallest, largest)."""
    for name, (low, high) in ranges.items():
        if low > high:
            raise InputError(f"{name} is {low} to {high}; give the smallest first")


@checked
def random_rotation(*, degrees: Degrees = 15.0, padding: Padding = 0, flip: Flip = False) -> Augment:
    """Rotate by a uniform random angle around the centre; nearest pixel, black outside."""

    def rotate(keys: Tensor, images: Tensor) -> Tensor:
        angle = torch.deg2rad(degrees * (2 * random.uniform(keys) - 1))
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        return affine(images, (cos, -sin, zero), (sin, cos, zero))

    return chain(crop_flip(padding=padding, flip=flip), of_images(rotate))


Row = tuple[Tensor, Tensor, Tensor]
"""[B] float32 each: factor of x, factor of y, and what is added, pixels."""


def affine(images: Tensor, x_from: Row, y_from: Row) -> Tensor:
    """Each image under an affine map of its own: nearest pixel, black outside.

    The pixel at (x, y) is read at (x_from . (x, y, 1), y_from . (x, y, 1)); the centre of the image is (0, 0).
    Positions are multiples of 2^-17 pixels.
    """
    height, width = images.shape[2:]
    y, x = (2 * torch.arange(n, device=images.device) + 1 - n for n in (height, width))  # twice the position

    def position(row: Row, size: int) -> Tensor:
        by_x, by_y, shift = ((value * 65536).round().to(torch.int64)[:, None, None] for value in row)
        return (by_x * x + by_y * y[:, None] + (2 * shift + size * 65536)) >> 17

    return pixels_at(images, position(y_from, height), position(x_from, width))


def pixels_at(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels at positions that broadcast to [B, H, W] int64; 0 outside of the image."""
    height, width = images.shape[2:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    pixels = _gather(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1))
    return torch.where(inside[:, None], pixels, 0)


def _gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    index = (rows * images.shape[3] + columns).flatten(1)[:, None]  # one dimension: many times faster than two
    return images.flatten(2).gather(2, index.expand(-1, images.shape[1], -1)).view(images.shape)
