"""WideResNet: Sergey Zagoruyko and Nikos Komodakis, "Wide residual networks", BMVC 2016, arXiv 1605.07146.

`wrn-28-10` has 28 layers, ten times as wide as ResNet's for CIFAR. Blocks are pre-activated; a projection shares the
activation of its residual branch (table 1, figure 1 c and d).

Shapes: B images, C channels, H and W height and width, K classes.
"""

from functools import partial

import torch
from torch import Tensor, nn

from backbones.errors import InputError
from backbones.models.base import Backbone, ImageShape, NumClasses, Stem, make_constructor
from backbones.models.layers import ResidualBlock, conv1x1, conv3x3, init_conv_net, make_stages, make_stem
from backbones.ranges import Probability


class WideBlock(ResidualBlock):
    """Two 3x3 convolutions, each after its BatchNorm and ReLU, dropout between (figure 1, d)."""

    def __init__(self, in_channels: int, width: int, stride: int, *, dropout: float) -> None:
        super().__init__()
        self.out_channels = width
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, width, stride=stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(width, width)
        changes_shape = stride != 1 or in_channels != width
        self.projection = conv1x1(in_channels, width, stride=stride) if changes_shape else None

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, width, H/stride, W/stride]
        activated = torch.relu_(self.norm1(x))
        y = self.conv1(activated)
        y = self.conv2(self.dropout(torch.relu_(self.norm2(y))))
        return y + (x if self.projection is None else self.projection(activated))


class WideResNet(Backbone):
    """Wide residual network (arXiv 1605.07146, table 1), for images of any size.

    Args:
        depth: number of layers; 6 n + 4 for n blocks per stage.
        widen: k, how many times wider the three stages are than 16, 32 and 64 channels.
        dropout: probability of dropping between the convolutions of a block (section 3.3 tries 0.3).
    """

    def __init__(
        self,
        depth: int,
        widen: int,
        image_shape: ImageShape,
        num_classes: NumClasses,
        *,
        stem: Stem = "cifar",
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise InputError(f"a depth of {depth} is not 6 n + 4, as 16, 28 and 40 are")
        self.stem = make_stem(stem, image_shape[0], 16, activation=False)
        stage_depth = (depth - 4) // 6  # what is not in the stages: the stem, two projections, the head
        block = partial(WideBlock, dropout=dropout)
        self.stages, channels = make_stages(block, 16, 16 * widen, (stage_depth,) * 3)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)

    def pool(self, x: Tensor) -> Tensor:
        return torch.relu_(self.norm(x)).mean(dim=(2, 3))


wide_resnet = make_constructor(WideResNet, init_conv_net)
wrn_16_8 = partial(wide_resnet, 16, 8)
wrn_28_10 = partial(wide_resnet, 28, 10)
wrn_40_4 = partial(wide_resnet, 40, 4)
