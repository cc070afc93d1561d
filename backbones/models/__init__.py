"""Every model by the name that the command line knows it by.

A constructor takes `(image_shape, num_classes)` and, keyword-only, the fields that `--model.FIELD` sets.
"""

from collections.abc import Callable

from backbones.models.base import Model as Model
from backbones.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from backbones.models.vit import vit_base, vit_huge, vit_large, vit_small, vit_tiny

MODELS: dict[str, Callable[..., Model]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
    "vit-tiny": vit_tiny,
    "vit-small": vit_small,
    "vit-base": vit_base,
    "vit-large": vit_large,
    "vit-huge": vit_huge,
}
