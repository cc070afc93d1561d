"""Augmentations by name. Keyword-only parameters are the fields that `--augment.FIELD` sets."""

from collections.abc import Callable

from backbones.augment.base import Augment, Normalize, chain, identity, make_normalize
from backbones.augment.geometry import crop_flip, random_crop, random_flip

AUGMENTS: dict[str, Callable[..., Augment]] = {"crop-flip": crop_flip, "identity": identity}
