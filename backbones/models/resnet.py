"""ResNet: Kaiming He, Xiangyu Zhang, Shaoqing Ren and Jian Sun, "Deep residual learning for image recognition",
CVPR 2016, arXiv 1512.03385.

Differs from the paper: in a bottleneck the 3x3 convolution carries the stride (as in torchvision and most others;
"ResNet v1.5"), and the shortcut of a block that changes shape is always a 1x1 convolution (option B).

Shapes: B images, C channels, H and W height and width, K classes.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from backbones.models.base import Backbone, ImageShape, NumClasses, StageDepths, Stem, make_constructor
from backbones.models.layers import (
    Block,
    DropPath,
    ResidualBlock,
    conv1x1,
    conv3x3,
    drop_paths,
    init_conv_net,
    make_stages,
    make_stem,
)
from backbones.ranges import Probability

MakeAttention = Callable[[int], nn.Module]
"""channels -> a module that reweights the residual before the shortcut is added."""


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions (figure 5, left)."""

    def __init__(self, in_channels: int, width: int, stride: int, *, attention: MakeAttention = nn.Identity) -> None:
        super().__init__()
        self.out_channels = width
        self.conv1 = conv3x3(in_channels, width, stride=stride)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.norm2 = nn.BatchNorm2d(width)
        self.attention = attention(width)
        self.drop_path = DropPath(0.0)
        self.shortcut = make_shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, width, H/stride, W/stride]
        y = torch.relu_(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return torch.relu_(self.drop_path(self.attention(y)) + self.shortcut(x))


class Bottleneck(ResidualBlock):
    """1x1 to narrow, 3x3, 1x1 to widen (figure 5, right)."""

    def __init__(self, in_channels: int, width: int, stride: int, *, attention: MakeAttention = nn.Identity) -> None:
        super().__init__()
        self.out_channels = 4 * width
        self.conv1 = conv1x1(in_channels, width)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride=stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, self.out_channels)
        self.norm3 = nn.BatchNorm2d(self.out_channels)
        self.attention = attention(self.out_channels)
        self.drop_path = DropPath(0.0)
        self.shortcut = make_shortcut(in_channels, self.out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, 4 width, H/stride, W/stride]
        y = torch.relu_(self.norm1(self.conv1(x)))
        y = torch.relu_(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return torch.relu_(self.drop_path(self.attention(y)) + self.shortcut(x))


def make_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The identity where the shape stays, else a projection (equation 2)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(conv1x1(in_channels, out_channels, stride=stride), nn.BatchNorm2d(out_channels))


class ResNet(Backbone):
    """Deep residual network (arXiv 1512.03385, table 1), for images of any size.

    Args:
        drop_path: probability of dropping the last block of a sample; less for earlier blocks (arXiv 1603.09382).
    """

    def __init__(
        self,
        block: Block,
        stage_depths: StageDepths,
        image_shape: ImageShape,
        num_classes: NumClasses,
        *,
        stem: Stem = "cifar",
        drop_path: Probability = 0.0,
    ) -> None:
        super().__init__()
        self.stem = make_stem(stem, image_shape[0], 64)
        self.stages, channels = make_stages(block, 64, 64, stage_depths)
        drops = [each for each in self.stages.modules() if isinstance(each, DropPath)]
        for drop, probability in zip(drops, drop_paths(drop_path, len(drops)), strict=True):
            drop.probability = probability
        self.head = nn.Linear(channels, num_classes)


resnet = make_constructor(ResNet, init_conv_net)
resnet18 = partial(resnet, BasicBlock, (2, 2, 2, 2))
resnet34 = partial(resnet, BasicBlock, (3, 4, 6, 3))
resnet50 = partial(resnet, Bottleneck, (3, 4, 6, 3))
resnet101 = partial(resnet, Bottleneck, (3, 4, 23, 3))
resnet152 = partial(resnet, Bottleneck, (3, 8, 36, 3))
