"""Sizes of torchvision's ResNets and ResNeXts, and of the published CIFAR ones. Their logits: test_convert.py."""

import pytest
import torch
import torchvision.models

import backbones.random as random
import backbones.tree as tree
from backbones.models import MODELS

NAMES = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
NAMES += ["resnext50-32x4d", "resnext101-32x8d", "resnext101-64x4d"]


@pytest.mark.parametrize("name", NAMES)
def test_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name.replace("-", "_"))
    ours = MODELS[name]((3, 224, 224), 1000, stem="imagenet").skeleton
    num_params = sum(leaf.numel() for leaf in ours.parameters())
    assert num_params == sum(leaf.numel() for leaf in theirs.parameters())
    known = {"resnet50": 25_557_032, "resnext101-64x4d": 83_455_272}
    assert num_params == known.get(name, num_params)


def test_cifar_stem_has_the_published_size() -> None:
    params, _ = MODELS["resnet18"]((3, 32, 32), 10).init(random.generator(0))
    assert tree.size(params) == 11_173_962
    assert params["stem.0.weight"].is_contiguous(memory_format=torch.channels_last)
