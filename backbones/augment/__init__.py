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
    augment.__name__.replace("_", "-"): augment
    for augment in (
        crop_flip, alternating_flip, resized_crop, random_rotation, color_jitter, random_grey, cutout, random_erasing,
        rand_augment, trivial_augment, auto_augment, mixup, cutmix, mixup_cutmix, repeated, identity,
    )
}  # fmt: skip
