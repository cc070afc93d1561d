"""MobileNetV2: Mark Sandler, Andrew Howard, Menglong Zhu, Andrey Zhmoginov and Liang-Chieh Chen, "MobileNetV2:
inverted residuals and linear bottlenecks", CVPR 2018, arXiv 1801.04381.

Differs from the paper: with the stem `cifar`, the stem and the second stage keep the size of the image.

Shapes: B images, C channels, H and W height and width, K classes.
"""

from collections.abc import Iterator
from itertools import islice

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.models.base import Backbone, ImageShape, NumClasses, Stem, make_constructor
from backbones.models.cpu_layers import DepthwiseConv
from backbones.models.layers import conv1x1, conv3x3, init_conv_net

STAGES = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
"""(expansion t, channels c, blocks n, stride s of the first block) of each stage (table 2)."""


class InvertedResidual(nn.Module):
    """1x1 to widen, 3x3 depthwise, 1x1 to narrow without activation (figure 3, b; figure 4, d)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * in_channels
        self.expand = nn.Sequential()
        if expansion > 1:
            self.expand.extend([conv1x1(in_channels, inner), nn.BatchNorm2d(inner), nn.ReLU6(inplace=True)])
        self.depthwise = DepthwiseConv(inner, 3, stride=stride)
        self.norm1 = nn.BatchNorm2d(inner)
        self.project = conv1x1(inner, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.keeps_shape = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, out_channels, H/stride, W/stride]
        y = F.relu6(self.norm1(self.depthwise(self.expand(x))), inplace=True)
        y = self.norm2(self.project(y))
        return x + y if self.keeps_shape else y


class MobileNetV2(Backbone):
    """ConvNet of inverted residuals in seven stages (arXiv 1801.04381, table 2), for images of any size.

    Args:
        stem: first layers and second stage; cifar keeps the size of the image, imagenet quarters it.
    """

    def __init__(self, image_shape: ImageShape, num_classes: NumClasses, *, stem: Stem = "cifar") -> None:
        super().__init__()
        stem_stride = 2 if stem == "imagenet" else 1
        self.stem = nn.Sequential(
            conv3x3(image_shape[0], 32, stride=stem_stride), nn.BatchNorm2d(32), nn.ReLU6(inplace=True)
        )
        self.blocks = nn.Sequential()
        channels = 32
        for stage, (expansion, out_channels, depth, first_stride) in enumerate(STAGES):
            if stage == 1 and stem == "cifar":
                first_stride = 1
            for i in range(depth):
                stride = first_stride if i == 0 else 1
                self.blocks.append(InvertedResidual(channels, out_channels, stride, expansion))
                channels = out_channels
        self.last = nn.Sequential(conv1x1(channels, 1280), nn.BatchNorm2d(1280), nn.ReLU6(inplace=True))
        self.head = nn.Linear(1280, num_classes)

    def forward_features(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        x = self.stem(images)
        yield "stem", x
        blocks = iter(self.blocks)
        for stage, (_, _, depth, _) in enumerate(STAGES, start=1):
            for block in islice(blocks, depth):
                x = block(x)
            yield f"stage{stage}", x
        yield "pooled", self.last(x).mean(dim=(2, 3))


mobilenet_v2 = make_constructor(MobileNetV2, init_conv_net)
