"""MobileNet: Andrew G. Howard et al., "MobileNets: efficient convolutional neural networks for mobile vision
applications", arXiv 1704.04861.

Shapes: B images, C channels, H and W height and width, K classes.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from backbones.models.base import Backbone, Model, make_model
from backbones.models.layers import Stem, conv1x1, conv3x3, init_conv_net

BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
"""(channels, stride) of each block (table 1)."""


class SeparableBlock(nn.Module):
    """3x3 depthwise convolution, then 1x1 convolution (figure 3, right)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = conv3x3(in_channels, in_channels, stride=stride, groups=in_channels)
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.pointwise = conv1x1(in_channels, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, out_channels, H/stride, W/stride]
        x = torch.relu(self.norm1(self.depthwise(x)))
        return torch.relu(self.norm2(self.pointwise(x)))


class MobileNetModule(Backbone):
    """Stem, thirteen separable blocks, global average, head (table 1)."""

    def __init__(self, *, stem: Stem, in_channels: int, num_classes: int) -> None:
        super().__init__()
        stride = 2 if stem == "imagenet" else 1
        self.stem = nn.Sequential(conv3x3(in_channels, 32, stride=stride), nn.BatchNorm2d(32), nn.ReLU())
        self.blocks = nn.Sequential()
        channels = 32
        for out_channels, stride in BLOCKS:
            self.blocks.append(SeparableBlock(channels, out_channels, stride))
            channels = out_channels
        self.head = nn.Linear(channels, num_classes)

    def forward_features(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        x = self.stem(images)
        yield "stem", x
        for i, block in enumerate(self.blocks, start=1):
            x = block(x)
            yield f"block{i}", x
        yield "pooled", x.mean(dim=(2, 3))


def mobilenet(image_shape: tuple[int, int, int], num_classes: int, *, stem: Stem = "cifar") -> Model:
    """ConvNet of depthwise separable convolutions (arXiv 1704.04861), for images of any size.

    Args:
        image_shape: channels, height and width of an image.
        num_classes: number of classes K.
        stem: first layers; cifar keeps the size of the image, imagenet halves it.
    """
    make_module = partial(MobileNetModule, stem=stem, in_channels=image_shape[0], num_classes=num_classes)
    return make_model(make_module, init_conv_net)
