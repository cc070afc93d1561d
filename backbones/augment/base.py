"""What an augmentation is: a pure function of whole batches, on the device where they are.

Those of uint8 images compute in integers after the draw, so that rounding is the same on every device, eager or
compiled. (On a GPU a compiled step may round what it draws otherwise, by an ulp.)

B images, C channels, H and W height and width.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

import backbones.random as random
from backbones.errors import InputError
from backbones.types import Batch


class Augment(Protocol):
    """A training augmentation: a pure function of a batch with uint8 images.

    `keys` [B] int64 is a random key for each sample (see `random.py`): one sample at one step and epoch is augmented in
    the same way on any rank.
    """

    def __call__(self, keys: Tensor, batch: Batch) -> Batch: ...


def chain(*augments: Augment) -> Augment:
    """Apply augmentations one after the other, each with random numbers of its own."""

    def augment(keys: Tensor, batch: Batch) -> Batch:
        for i, each in enumerate(augments):
            batch = each(random.fold_in(keys, i), batch)
        return batch

    return augment


def identity() -> Augment:
    """Leave the batch as it is."""
    return lambda keys, batch: batch


def of_images(function: Callable[[Tensor, Tensor], Tensor]) -> Augment:
    """The augmentation that changes nothing but the images.

    Args:
        function: (keys [B] int64, images [B, C, H, W]) -> images of the same shape and dtype.
    """
    return lambda keys, batch: batch._replace(images=function(keys, batch.images))


def of_uint8_images(function: Callable[[Tensor, Tensor], Tensor]) -> Augment:
    """`of_images`, for a function that computes in the integers of uint8 images.

    Raises:
        InputError: when it is called with images of another dtype.
    """

    def check(keys: Tensor, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise InputError(f"got {images.dtype} images, wanted uint8: in a chain, put what mixes images last")
        return function(keys, images)

    return of_images(check)


def check_device(keys: Tensor, table: Tensor) -> None:
    """Raise InputError unless a table that an augmentation was made with is on the device of the keys."""
    if keys.device != table.device:
        raise InputError(
            f"an augmentation was made for {table.device}, and the batch is on {keys.device}; make it with the device "
            "that the experiment gives, by a parameter `device` of your function"
        )


def per_image(values: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1], to broadcast with images."""
    return values[:, None, None, None]


Normalize = Callable[[Tensor], Tensor]
"""images [B, C, H, W] uint8 or float in [0, 255] -> float32."""


def make_normalize(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Normalize:
    """(image - mean) / std for each channel, float32 in channels_last memory, which is fastest for convolutions."""
    shift, scale = (torch.tensor(values, device=device)[:, None, None] for values in (mean, std))

    def normalize(images: Tensor) -> Tensor:
        images = (images.to(torch.float32) - shift) / scale
        return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # vmap has no rule for memory formats

    return normalize
