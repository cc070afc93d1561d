"""A training in which one image goes wrong, at one step."""

import dataclasses
import math

import torch
from torch import Tensor, nn

from backbones.augment import Augment, crop_flip
from backbones.component import use
from backbones.optim import adam
from backbones.types import Batch
from experiments.digits import digits_vit_tiny

BAD, SAMPLE = 43, 666
"""The step that goes wrong, and the image, of class 7."""


class Linear(nn.Sequential):
    """A model that trains in no time, and in which no norm hides what an image is."""

    def __init__(
        self, num_classes: int, image_shape: tuple[int, int, int], dropout: float = 0.1, bias: bool = True
    ) -> None:
        inputs = math.prod(image_shape)
        super().__init__(nn.Flatten(), nn.Dropout(dropout), nn.Linear(inputs, num_classes, bias=bias))


class WithUnused(Linear):
    """With a parameter that the model does not use."""

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int], dropout: float = 0.1) -> None:
        super().__init__(num_classes, image_shape, dropout)
        self.register_parameter("unused", nn.Parameter(torch.ones(3)))


def poison(*, sample: int | None = SAMPLE, epoch: int = 0, pixel: float = 1e5) -> Augment:
    """`crop_flip`, after which one image, or each, has pixels of this value when it is seen in that epoch."""
    crop = crop_flip(padding=1, flip=False)

    def augment(keys: Tensor, batch: Batch) -> Batch:
        batch = crop(keys, batch)
        bad = (batch.epoch == epoch) & ((sample is None) | (batch.index == sample))
        images = batch.images.to(torch.float32)
        return batch._replace(images=torch.where(bad[:, None, None, None], pixel, images))

    return augment


POISONED = dataclasses.replace(
    digits_vit_tiny,
    name="poisoned",
    model=use(Linear),
    augment=use(poison),
    optim=use(adam, lr=3e-3),
    steps=60,
    batch_size=32,
    log_every=5,
    eval_every=30,
    save_every=20,
    keep=9,
)

REWIND = dataclasses.replace(POISONED, rewind=2, ema=0.9, accumulate=2, log_every=1)
PASS_OVER = dataclasses.replace(REWIND, pass_over=(BAD - 1, BAD))
"""What `REWIND` has become at its end."""
