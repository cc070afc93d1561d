"""Every model, small enough to be computed, and images for it."""

from functools import partial

import torch
from torch import Tensor

import backbones.random as random
from backbones.models import MODELS, Model


def shallow(name: str) -> partial[Model]:
    """The constructor, cut to two blocks, or to two in the first stage and one in others; a ViT as wide as ViT-Tiny."""
    constructor = MODELS[name]
    if name.startswith("vit"):
        return partial(constructor, depth=2, width=192, heads=3, mlp_width=768)
    if name.startswith("mixer"):
        return partial(constructor, depth=2)
    if name.startswith("wrn"):
        return partial(constructor.func, 16, 2)
    if name.startswith("vgg"):
        _, batch_norm = constructor.args
        return partial(constructor.func, (1, 1, 2, 1, 1), batch_norm)
    if "resne" in name or name.startswith("convnext"):
        *others, stage_depths = constructor.args
        return partial(constructor.func, *others, (2, *[1] * (len(stage_depths) - 1)), **constructor.keywords)
    return partial(constructor)


def images() -> Tensor:
    return torch.randn((2, 3, 32, 32), generator=random.generator(1)).contiguous(memory_format=torch.channels_last)
