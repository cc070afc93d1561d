"""Augmentations by name. Keyword-only parameters are the fields that `--augment.FIELD` sets.

`num_classes` and `device` are given by the experiment.
"""

from collections.abc import Callable

from backbones.augment.autoaugment import auto_augment
from backbones.augment.base import Augment, Normalize, chain, identity, make_normalize, of_images, per_image
from backbones.augment.color import color_jitter, random_grey
from backbones.augment.erase import cutout, random_erasing
from backbones.augment.geometry import (
    alternating_flip,
    crop_flip,
    random_crop,
    random_flip,
    random_rotation,
    resized_crop,
)
from backbones.augment.mix import cutmix, mixup, mixup_cutmix, repeated
from backbones.augment.policy import rand_augment, trivial_augment

AUGMENTS: dict[str, Callable[..., Augment]] = {
    "crop-flip": crop_flip,
    "alternating-flip": alternating_flip,
    "resized-crop": resized_crop,
    "random-rotation": random_rotation,
    "color-jitter": color_jitter,
    "random-grey": random_grey,
    "cutout": cutout,
    "random-erasing": random_erasing,
    "rand-augment": rand_augment,
    "trivial-augment": trivial_augment,
    "auto-augment": auto_augment,
    "mixup": mixup,
    "cutmix": cutmix,
    "mixup-cutmix": mixup_cutmix,
    "repeated": repeated,
    "identity": identity,
}
