"""MobileNet: Andrew G. Howard et al., "MobileNets: efficient convolutional neural networks for mobile vision
applications", arXiv 1704.04861.

Shapes: B images, C channels, H and W height and width, K classes.
"""

import torch
from torch import Tensor, nn

from backbones.models.base import Backbone, ImageShape, NumClasses, Stem, make_constructor
from backbones.models.cpu_layers import DepthwiseConv
from backbones.models.layers import conv1x1, conv3x3, init_conv_net

BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
"""(channels, stride) of each block (table 1)."""


class SeparableBlock(nn.Module):
    """3x3 depthwise convolution, then 1x1 convolution (figure 3, right)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv(in_channels, 3, stride=stride)
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.pointwise = conv1x1(in_channels, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, out_channels, H/stride, W/stride]
        x = torch.relu_(self.norm1(self.depthwise(x)))
        return torch.relu_(self.norm2(self.pointwise(x)))


class MobileNet(Backbone):
    """ConvNet of depthwise separable convolutions (arXiv 1704.04861, table 1), for images of any size.

    Args:
        stem: first layers; cifar keeps the size of the image, imagenet halves it.
    """

    LAYERS = "blocks"

    def __init__(self, image_shape: ImageShape, num_classes: NumClasses, *, stem: Stem = "cifar") -> None:
        super().__init__()
        stride = 2 if stem == "imagenet" else 1
        self.stem = nn.Sequential(conv3x3(image_shape[0], 32, stride=stride), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential()
        channels = 32
        for out_channels, stride in BLOCKS:
            self.blocks.append(SeparableBlock(channels, out_channels, stride))
            channels = out_channels
        self.head = nn.Linear(channels, num_classes)


mobilenet = make_constructor(MobileNet, init_conv_net)
