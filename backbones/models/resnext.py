"""ResNeXt: Saining Xie, Ross Girshick, Piotr Dollar, Zhuowen Tu and Kaiming He, "Aggregated residual transformations
for deep neural networks", CVPR 2017, arXiv 1611.05431.

ResNet with another block; `32x4d` is 32 groups (the cardinality) of 4 channels each in the first stage (table 1). The
networks of 29 layers are those for CIFAR, with three stages (section 5.3).

Differs from the paper: the networks of 29 layers halve the image in the first 1x1 convolution of a stage, which saves
an eighth of the multiply-accumulates of 32x4d; `downsample="3x3"` gives the paper's.

Shapes: B images, C channels, H and W height and width.
"""

from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from backbones.models.base import ImageShape, Model, NumClasses, StageDepths, Stem
from backbones.models.layers import ResidualBlock, conv1x1, conv3x3
from backbones.models.resnet import make_shortcut, resnet
from backbones.ranges import Count, checked

Downsample = Annotated[Literal["1x1", "3x3"], Doc("which convolution of a stage's first block halves the image")]


class ResNeXtBlock(ResidualBlock):
    """1x1 to narrow, 3x3 in groups, 1x1 to widen (figure 3, c)."""

    def __init__(
        self, in_channels: int, width: int, stride: int, *, groups: int, group_width: int, downsample: Downsample
    ) -> None:
        super().__init__()
        self.out_channels = 4 * width
        inner = groups * group_width * width // 64  # `group_width` is that of the first stage, which is 64 wide
        stride1, stride2 = (stride, 1) if downsample == "1x1" else (1, stride)
        self.conv1 = conv1x1(in_channels, inner, stride=stride1)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride=stride2, groups=groups)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, self.out_channels)
        self.norm3 = nn.BatchNorm2d(self.out_channels)
        self.shortcut = make_shortcut(in_channels, self.out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, 4 width, H/stride, W/stride]
        y = torch.relu_(self.norm1(self.conv1(x)))
        y = torch.relu_(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return torch.relu_(y + self.shortcut(x))


@checked
def resnext(
    groups: Annotated[Count, Doc("the cardinality, number of groups in each 3x3 convolution")],
    group_width: Annotated[Count, Doc("channels of a group in the first stage; each further stage doubles them")],
    stage_depths: StageDepths,
    image_shape: ImageShape,
    num_classes: NumClasses,
    *,
    stem: Stem = "cifar",
    downsample: Downsample = "3x3",
) -> Model:
    """Residual network of grouped convolutions (arXiv 1611.05431), for images of any size."""
    block = partial(ResNeXtBlock, groups=groups, group_width=group_width, downsample=downsample)
    return resnet(block, stage_depths, image_shape, num_classes, stem=stem)


resnext29_32x4d = partial(resnext, 32, 4, (3, 3, 3), downsample="1x1")
resnext29_2x64d = partial(resnext, 2, 64, (3, 3, 3), downsample="1x1")
resnext50_32x4d = partial(resnext, 32, 4, (3, 4, 6, 3))
resnext101_32x8d = partial(resnext, 32, 8, (3, 4, 23, 3))
resnext101_64x4d = partial(resnext, 64, 4, (3, 4, 23, 3))
