"""What more than one paper uses: stems, and how to fill a fresh module."""

import math
from typing import Literal

import torch
from torch import nn

Stem = Literal["cifar", "imagenet"]


def conv3x3(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution that keeps the image's size (at stride 1) and leaves the bias to the norm that follows."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


def make_stem(stem: Stem, in_channels: int, out_channels: int) -> nn.Sequential:
    """The first layers of a ConvNet.

    `cifar` is one 3x3 convolution and keeps 32x32 images at their size (He et al. 2015, section 4.2). `imagenet` is a
    7x7 convolution and a 3x3 max-pool, each of stride 2 (He et al. 2015, table 1).
    """
    if stem == "cifar":
        return nn.Sequential(conv3x3(in_channels, out_channels), nn.BatchNorm2d(out_channels), nn.ReLU())
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def init_conv_net(module: nn.Module, generator: torch.Generator) -> None:
    """Fill one layer of a ConvNet: He fan-out for convolutions, LeCun uniform for the head, identity for BatchNorm.

    Source: He et al., "Delving deep into rectifiers", arXiv 1502.01852, equation 14; the head as `torch.nn.Linear`.
    """
    match module:
        case nn.Conv2d():
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        case nn.Linear():
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        case nn.BatchNorm2d():
            module.reset_parameters()  # ones and zeros: draws nothing
        case _:
            raise TypeError(f"no rule for filling a {type(module).__name__}")
