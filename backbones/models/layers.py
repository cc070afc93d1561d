"""What several networks have in common: stems, stages, blocks of layers, initialisation, checks of the image size."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Doc

from backbones.errors import InputError
from backbones.models.base import ImageShape, Stem
from backbones.models.cpu_layers import Conv, Linear
from backbones.ranges import Range

# The narrowest residual block has 64 channels.
Reduction = Annotated[int, Range("[1, 64]"), Doc("r, the factor by which the attention narrows its channels")]


class DropPath(nn.Module):
    """Drop the residual branch for some samples, in training (stochastic depth, arXiv 1603.09382)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:  # [B, ...] -> [B, ...]
        if not self.training or self.probability == 0:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.probability
        return x * kept / (1 - self.probability)


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # [..., width] -> [..., width]
        x = self.dropout(F.gelu(self.fc1(x)))
        return self.dropout(self.fc2(x))


def drop_paths(last: float, depth: int) -> list[float]:
    """The probability of `DropPath` in each of `depth` blocks: a line from 0 to `last`.

    As timm's; in the paper (arXiv 1603.09382, equation 4) it is a line from last / depth.
    """
    return [last * i / (depth - 1) if depth > 1 else last for i in range(depth)]


class ResidualBlock(nn.Module):
    """A block of a stage, with the number of channels that it gives."""

    out_channels: int


Block = Annotated[
    Callable[..., ResidualBlock], Doc("the kind of block in all stages, which are 64, 128, 256 and 512 wide")
]
"""(in_channels, width, stride) -> a residual block."""


def conv3x3(in_channels: int, out_channels: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """3x3 convolution that keeps the image size (at stride 1), without bias: a norm follows."""
    return Conv(in_channels, out_channels, 3, stride=stride, groups=groups)


def conv1x1(in_channels: int, out_channels: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias."""
    return Conv(in_channels, out_channels, 1, stride=stride, groups=groups)


def global_max(x: Tensor) -> Tensor:
    """The maximum of each channel, [B, C, H, W] -> [B, C]; like `amax`, with a gradient that compiles in bfloat16.

    The gradient of `amax` goes to the elements that equal the maximum. A compiled program computes these once more, in
    float32, so that none equals the rounded maximum, and the gradient is 0 / 0.
    """
    return F.max_pool2d(x, x.shape[2:]).flatten(1)


def make_stem(stem: Stem, in_channels: int, out_channels: int, *, activation: bool = True) -> nn.Sequential:
    """The first layers of a residual network.

    `cifar` is one 3x3 convolution and keeps 32x32 images at their size (He et al. 2015, section 4.2). `imagenet` is a
    7x7 convolution and a 3x3 max-pool, each of stride 2 (He et al. 2015, table 1). With `activation`, BatchNorm and
    ReLU follow the convolution.
    """
    if stem == "cifar":
        layers: list[nn.Module] = [conv3x3(in_channels, out_channels)]
    else:
        layers = [nn.Conv2d(in_channels, out_channels, 7, stride=2, padding=3, bias=False)]
    if activation:
        layers += [nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    if stem == "imagenet":
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    return nn.Sequential(*layers)


def make_stages(block: Block, in_channels: int, width: int, stage_depths: Sequence[int]) -> tuple[nn.Sequential, int]:
    """Stages of residual blocks, the first `width` wide, and the number of channels that come out of the last.

    Each stage but the first doubles the width, and its first block halves the image.
    """
    stages = nn.Sequential()
    for stage, depth in enumerate(stage_depths):
        blocks = nn.Sequential()
        for i in range(depth):
            new_block = block(in_channels, width * 2**stage, 2 if stage > 0 and i == 0 else 1)
            blocks.append(new_block)
            in_channels = new_block.out_channels
        stages.append(blocks)
    return stages, in_channels


def init_conv_net(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise one layer of a ConvNet: He normal (fan-out) for convolutions, identity for norms.

    Source: He et al., "Delving deep into rectifiers", arXiv 1502.01852, equation 14. For grouped convolutions
    fan-out counts the filters of all groups, as in torchvision; the equation would divide by the number of groups.
    Linear layers are initialised as `torch.nn.Linear` does it.
    """
    match module:
        case nn.Conv2d():
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        case nn.Linear():
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        case nn.BatchNorm2d():
            module.reset_parameters()  # ones and zeros: draws nothing
        case _:
            raise TypeError(f"no rule for initialising a {type(module).__name__}")


def check_image_size(image_shape: ImageShape, *, smallest: int) -> None:
    """Raise InputError if the image is too small to be halved as often as the model does."""
    _, height, width = image_shape
    if min(height, width) < smallest:
        raise InputError(
            f"images of {height}x{width} pixels are too small; this model takes {smallest}x{smallest} or more"
        )


def count_patches(patch_size: int, image_shape: ImageShape) -> int:
    """How many patches tile the image.

    Raises:
        InputError: none do; the message lists the patch sizes that fit.
    """
    _, height, width = image_shape
    if height % patch_size or width % patch_size:
        tiling = [size for size in range(1, min(height, width) + 1) if height % size == width % size == 0]
        raise InputError(
            f"a patch size of {patch_size} does not divide images of {height}x{width} pixels; "
            f"set patch_size to one of {', '.join(map(str, tiling))}"
        )
    return (height // patch_size) * (width // patch_size)
