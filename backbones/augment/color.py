"""Color jitter and grey, and what policies share with them: operations on the levels of uint8 images.

An image of three channels is RGB; one of any other number counts as grey already. B images, C channels, H and W height
and width.
"""

from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import Doc

import backbones.random as random
from backbones.augment.base import Augment, chain, of_uint8_images, per_image
from backbones.augment.geometry import Flip, Padding, crop_flip
from backbones.ranges import Range, checked

# more than 99 times the level, in units of 2^-16, would overflow in `blend`
Distance = Annotated[float, Range("[0, 99]"), Doc("largest distance of its factor from 1; factors are at least 0")]
Grey = Annotated[float, Range("[0, 1]"), Doc("that an image becomes grey")]


@checked
def color_jitter(
    *,
    brightness: Distance = 0.4,
    contrast: Distance = 0.4,
    saturation: Distance = 0.4,
    hue: Annotated[float, Range("[0, 0.5]"), Doc("largest turn of the hue either way, in circles")] = 0.1,
    padding: Padding = 0,
    flip: Flip = False,
) -> Augment:
    """Scale brightness, contrast and saturation by uniform random factors, and turn the hue, in this order.

    torchvision's ColorJitter, in one order for all images instead of a random one.
    """
    blends = [(brightness, black), (contrast, mean_grey), (saturation, grey)]

    def jitter(keys: Tensor, images: Tensor) -> Tensor:
        numbers = [random.uniform(random.fold_in(keys, i)) for i in range(4)]
        for number, (distance, base) in zip(numbers, blends, strict=False):
            if distance:
                low = max(1 - distance, 0)
                images = blend(images, base(images), low + (1 + distance - low) * number)
        return turn_hue(images, hue * (2 * numbers[3] - 1)) if hue else images

    return chain(crop_flip(padding=padding, flip=flip), of_uint8_images(jitter))


@checked
def random_grey(*, probability: Grey = 0.2, padding: Padding = 0, flip: Flip = False) -> Augment:
    """Make images grey; they keep their channels."""

    def drop_color(keys: Tensor, images: Tensor) -> Tensor:
        return torch.where(per_image(random.uniform(keys) < probability), grey(images), images)

    return chain(crop_flip(padding=padding, flip=flip), of_uint8_images(drop_color))


def black(images: Tensor) -> Tensor:
    """0-D uint8 zero."""
    return images.new_zeros(())


def grey(images: Tensor) -> Tensor:
    """Luma (ITU-R BT.601, rounded as torchvision does), [B, 1, H, W] uint8; images without color as they are."""
    if images.shape[1] != 3:
        return images
    r, g, b = images.to(torch.int32).split(1, dim=1)
    return ((19589 * r + 38470 * g + 7471 * b) >> 16).to(torch.uint8)  # 0.2989, 0.587, 0.114


def mean_grey(images: Tensor) -> Tensor:
    """Mean luma of each image, rounded, [B, 1, 1, 1] uint8."""
    levels = grey(images).flatten(1)
    return per_image((levels.sum(dim=1) + levels.shape[1] // 2) // levels.shape[1]).to(torch.uint8)


def smooth(images: Tensor) -> Tensor:
    """Each pixel but those of the border averaged with its eight neighbours, with weight 5 of 13; uint8.

    An image without an inside stays as it is.
    """
    levels = images.to(torch.int32)
    rows = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * levels[:, :, 1:-1, 1:-1]
    smoothed = images.clone()
    smoothed[:, :, 1:-1, 1:-1] = (2 * total + 13) // 26  # rounded
    return smoothed


def blend(images: Tensor, base: Tensor, factor: Tensor) -> Tensor:
    """factor image + (1 - factor) base, cut off at 0 and 255 and rounded down; uint8.

    Args:
        images: [B, C, H, W] uint8.
        base: uint8, broadcasts with `images`.
        factor: [B] float32, from 0 to 100; above 1 it leads away from the base. It is rounded to a multiple of 2^-16.
    """
    weight = per_image((factor * 65536).round().to(torch.int32))
    total = images * weight + base * (65536 - weight)
    return ((total + 128) >> 16).clamp(0, 255).to(torch.uint8)  # 128: a rounded factor makes no whole number smaller


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Move the hue of each image along the color circle, in HSV.

    Args:
        images: [B, C, H, W] uint8.
        turns: [B] float32, fractions of the circle.
    """
    if images.shape[1] != 3:
        return images
    r, g, b = images.to(torch.int32).unbind(dim=1)
    high, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    chroma, sixth = high - low, 65536  # the hue is counted in 2^-16 of a sixth of the circle
    of_g_or_b = torch.where(high == g, 2 * sixth + _ratio(b - r, chroma), 4 * sixth + _ratio(r - g, chroma))
    hue = torch.where(high == r, _ratio(g - b, chroma), of_g_or_b)
    hue = hue + (turns * 6 * sixth).round().to(torch.int32)[:, None, None]
    distances = [(n * sixth + hue) % (6 * sixth) for n in (5, 3, 1)]
    missing = torch.stack([torch.minimum(k, 4 * sixth - k).clamp(0, sixth) for k in distances], dim=1)
    return (high[:, None] - ((chroma[:, None] * missing + sixth // 2) >> 16)).to(torch.uint8)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return (numerator << 16) // denominator.clamp(min=1)


def lookup(images: Tensor, table: Tensor) -> Tensor:
    """Replace each level by `table` [B, C, 256] uint8 of its image and channel."""
    return table.gather(2, images.flatten(2).to(torch.int64)).view(images.shape)


def autocontrast(images: Tensor) -> Tensor:
    """The table that stretches the levels of each channel to 0 to 255, [B, C, 256] uint8; a flat channel stays."""
    low, high = (each.to(torch.int32) for each in images.flatten(2).aminmax(dim=2, keepdim=True))
    levels = torch.arange(256, dtype=torch.int32, device=images.device)
    stretched = ((levels - low) * 255 // (high - low).clamp(min=1)).clamp(0, 255)
    return torch.where(high > low, stretched, levels).to(torch.uint8)


def equalize(images: Tensor) -> Tensor:
    """The table that makes the levels of each channel equally frequent, as PIL does, [B, C, 256] uint8."""
    pixels = images.flatten(2).to(torch.int64)
    one = torch.ones((), dtype=torch.int32, device=images.device)
    levels = torch.arange(256, dtype=torch.int32, device=images.device)
    counts = one.new_zeros((*images.shape[:2], 256)).scatter_add(2, pixels, one.expand(pixels.shape))
    highest = counts.gather(2, images.flatten(2).amax(dim=2, keepdim=True).to(torch.int64))
    step = (pixels.shape[2] - highest) // 255
    below = counts.cumsum(dim=2, dtype=torch.int32) - counts
    flat = (below + step // 2) // step.clamp(min=1)
    return torch.where(step > 0, flat.clamp(0, 255), levels).to(torch.uint8)
