"""ShuffleNet: Xiangyu Zhang, Xinyu Zhou, Mengxiao Lin and Jian Sun, "ShuffleNet: an extremely efficient convolutional
neural network for mobile devices", CVPR 2018, arXiv 1707.01083.

`shufflenet-g8` is ShuffleNet 1x with 8 groups. The stem `cifar` is the paper's 3x3 convolution without its strides.

Shapes: B images, C channels, H and W height and width, K classes, G groups.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.errors import InputError
from backbones.models.base import Backbone, ImageShape, NumClasses, Stem, make_constructor
from backbones.models.cpu_layers import DepthwiseConv
from backbones.models.layers import conv1x1, conv3x3, init_conv_net

STAGE_DEPTHS = (4, 8, 4)
STAGE_WIDTHS = {2: 200, 3: 240, 4: 272, 8: 384}
"""Groups -> channels of the first stage; each further stage doubles them (table 1)."""


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Spread the channels of each group over all groups: channel g C/G + i goes to i G + g (figure 1, c)."""
    x = x.permute(0, 2, 3, 1)  # as channels_last memory has them; else the result would not be channels_last
    return x.unflatten(3, (groups, -1)).transpose(3, 4).flatten(3, 4).permute(0, 3, 1, 2)


class ShuffleBlock(nn.Module):
    """Grouped 1x1 convolution, channel shuffle, 3x3 depthwise, grouped 1x1 (figure 2, b; with stride 2, c)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int, *, first: bool) -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        inner = out_channels // 4
        if stride == 2:
            out_channels -= in_channels  # the pooled input brings the others
        # The stem's 24 channels are too few to be split (section 3.3).
        self.conv1 = conv1x1(in_channels, inner, groups=1 if first else groups)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = DepthwiseConv(inner, 3, stride=stride)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, out_channels, groups=groups)
        self.norm3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, out_channels, H/stride, W/stride]
        y = torch.relu_(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(shuffle_channels(y, self.groups)))
        y = self.norm3(self.conv3(y))
        if self.stride == 1:
            return torch.relu_(x + y)
        # The ReLU that follows the paper's concatenation would leave the pooled input, which is not negative, as it is.
        return torch.cat([F.avg_pool2d(x, 3, stride=2, padding=1), torch.relu_(y)], dim=1)


class ShuffleNet(Backbone):
    """ConvNet of grouped 1x1 convolutions and channel shuffles (arXiv 1707.01083, table 1), for images of any size.

    Args:
        groups: G, number of groups in the 1x1 convolutions: 2, 3, 4 or 8.
    """

    def __init__(self, groups: int, image_shape: ImageShape, num_classes: NumClasses, *, stem: Stem = "cifar") -> None:
        super().__init__()
        if groups not in STAGE_WIDTHS:
            raise InputError(f"{groups} groups are not in table 1; choose from {', '.join(map(str, STAGE_WIDTHS))}")
        stride = 2 if stem == "imagenet" else 1
        self.stem = nn.Sequential(conv3x3(image_shape[0], 24, stride=stride), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
        if stem == "imagenet":
            self.stem.append(nn.MaxPool2d(3, stride=2, padding=1))
        self.stages = nn.Sequential()
        channels = 24
        for stage, depth in enumerate(STAGE_DEPTHS):
            width = STAGE_WIDTHS[groups] * 2**stage
            blocks = nn.Sequential(ShuffleBlock(channels, width, 2, groups, first=stage == 0))
            blocks.extend(ShuffleBlock(width, width, 1, groups, first=False) for _ in range(depth - 1))
            self.stages.append(blocks)
            channels = width
        self.head = nn.Linear(channels, num_classes)


shufflenet = make_constructor(ShuffleNet, init_conv_net)
shufflenet_g2 = partial(shufflenet, 2)
shufflenet_g3 = partial(shufflenet, 3)
shufflenet_g4 = partial(shufflenet, 4)
shufflenet_g8 = partial(shufflenet, 8)
