"""Policies that draw their operations: RandAugment and TrivialAugment, and what AutoAugment shares with them.

Names, magnitudes and order of the operations are those of torchvision. Every image has an operation of its own, so the
whole batch passes through each of three kernels: an affine map, a blend and a lookup table. An image whose operation is
another one gets the map, the factor or the table that leaves it exactly as it is.

B images, C channels.
"""

from typing import Annotated, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Doc

import backbones.random as random
from backbones.augment import color
from backbones.augment.base import Augment, chain, of_uint8_images, per_image
from backbones.augment.geometry import Flip, Padding, affine, crop_flip
from backbones.ranges import Count, Range, checked


class Op:
    """Operations on an image. Plain integers: a compiled `tensor == member of an enum` is false."""

    IDENTITY, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE = range(6)
    BRIGHTNESS, COLOR, CONTRAST, SHARPNESS = range(6, 10)
    POSTERIZE, SOLARIZE, AUTO_CONTRAST, EQUALIZE, INVERT = range(10, 15)


class Strength(NamedTuple):
    """What the operations do at the highest level; between it and level 0 it is linear.

    At level 0 they do nothing, but that solarize makes white black. Auto-contrast, equalize and invert have no level.
    """

    levels: int
    shear: float
    """Pixels per pixel."""
    translate: int | None
    """Pixels; None for 150/331 of the side."""
    rotate: float
    """Degrees."""
    factor: float
    """Distance from 1 of the factor of brightness, color, contrast and sharpness."""
    posterize: int
    """Bits that are dropped, of 8."""


AUTO = Strength(levels=10, shear=0.3, translate=None, rotate=30.0, factor=0.9, posterize=4)
"""arXiv 1805.09501, table 6."""
RAND = AUTO._replace(levels=31)
WIDE = Strength(levels=31, shear=0.99, translate=32, rotate=135.0, factor=0.99, posterize=6)
"""arXiv 2103.10158: the wide space."""


@checked
def rand_augment(
    *,
    num_ops: Annotated[Count, Doc("operations per image, one after the other")] = 2,
    magnitude: Annotated[int, Range("[0, 30]"), Doc("level of the operations")] = 9,
    padding: Padding = 0,
    flip: Flip = False,
) -> Augment:
    """RandAugment (arXiv 1909.13719): operations drawn from all but inversion, each at one level."""

    def augment(keys: Tensor, images: Tensor) -> Tensor:
        for i in range(num_ops):
            keys_op, keys_sign = (random.fold_in(random.fold_in(keys, i), part) for part in (0, 1))
            op = random.randint(keys_op, Op.INVERT)
            images = apply_ops(images, op, torch.full_like(op, magnitude), random_sign(keys_sign), RAND)
        return images

    return chain(crop_flip(padding=padding, flip=flip), of_uint8_images(augment))


@checked
def trivial_augment(*, padding: Padding = 0, flip: Flip = False) -> Augment:
    """TrivialAugment, wide (arXiv 2103.10158): one operation drawn from all but inversion, at a level drawn from 31."""

    def augment(keys: Tensor, images: Tensor) -> Tensor:
        keys_op, keys_level, keys_sign = (random.fold_in(keys, part) for part in (0, 1, 2))
        op, level = random.randint(keys_op, Op.INVERT), random.randint(keys_level, WIDE.levels)
        return apply_ops(images, op, level, random_sign(keys_sign), WIDE)

    return chain(crop_flip(padding=padding, flip=flip), of_uint8_images(augment))


def random_sign(keys: Tensor) -> Tensor:
    """-1 or 1, [B] int64."""
    return 2 * random.randint(keys, 2) - 1


def apply_ops(images: Tensor, op: Tensor, level: Tensor, sign: Tensor, strength: Strength) -> Tensor:
    """Apply to each image an operation of its own.

    Args:
        images: [B, C, H, W] uint8.
        op: [B] int64, values of `Op`.
        level: [B] int64, from 0 to `strength.levels - 1`.
        sign: [B] int64, -1 or 1: the direction of operations that have two.
        strength: what the levels mean.
    """
    images = _move(images, op, level, sign, strength)
    images = _blend(images, op, level, sign, strength)
    return color.lookup(images, _table(images, op, level, strength))


def _move(images: Tensor, op: Tensor, level: Tensor, sign: Tensor, strength: Strength) -> Tensor:
    """Shear along the top or left border, translate, and rotate counterclockwise around the centre."""
    height, width = images.shape[2:]
    fraction = sign * level / (strength.levels - 1)

    def pixels(side: int) -> Tensor:  # rounded towards 0
        distance, unit = (150 * side, 331) if strength.translate is None else (strength.translate, 1)
        return sign * (level * distance // (unit * (strength.levels - 1)))

    shear_x = torch.where(op == Op.SHEAR_X, fraction * strength.shear, 0)
    shear_y = torch.where(op == Op.SHEAR_Y, fraction * strength.shear, 0)
    shift_x = torch.where(op == Op.TRANSLATE_X, pixels(width), 0)
    shift_y = torch.where(op == Op.TRANSLATE_Y, pixels(height), 0)
    angle = torch.deg2rad(torch.where(op == Op.ROTATE, fraction * strength.rotate, 0))
    x_from = (angle.cos(), shear_x - angle.sin(), shear_x * (height / 2) - shift_x)
    y_from = (shear_y + angle.sin(), angle.cos(), shear_y * (width / 2) - shift_y)
    return affine(images, x_from, y_from)


def _blend(images: Tensor, op: Tensor, level: Tensor, sign: Tensor, strength: Strength) -> Tensor:
    """Brightness, color, contrast and sharpness: lead towards a base image, or away from it."""
    each = per_image(op)
    base = torch.where(each == Op.SHARPNESS, color.smooth(images), color.black(images))
    base = torch.where(each == Op.COLOR, color.grey(images), base)
    base = torch.where(each == Op.CONTRAST, color.mean_grey(images), base)
    active = (op >= Op.BRIGHTNESS) & (op <= Op.SHARPNESS)
    fraction = sign * level / (strength.levels - 1)
    return color.blend(images, base, torch.where(active, 1 + fraction * strength.factor, 1))


def _table(images: Tensor, op: Tensor, level: Tensor, strength: Strength) -> Tensor:
    """Posterize, solarize, stretch, equalize or invert the levels: a table, [B, C, 256] uint8."""
    last = strength.levels - 1
    values = torch.arange(256, device=images.device)
    op, level = op[:, None, None], level[:, None, None]
    dropped = (2 * strength.posterize * level + last) // (2 * last)  # bits, rounded
    bright = values * last >= 255 * (last - level)  # than a threshold, 255 at level 0
    posterized = (values >> dropped) << dropped
    inverted = (op == Op.INVERT) | ((op == Op.SOLARIZE) & bright)
    table = torch.where(op == Op.POSTERIZE, posterized, values)
    table = torch.where(inverted, 255 - values, table).to(torch.uint8)  # [B, 1, 256]
    table = torch.where(op == Op.AUTO_CONTRAST, color.autocontrast(images), table)
    return torch.where(op == Op.EQUALIZE, color.equalize(images), table)
