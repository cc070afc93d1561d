"""PreAct-ResNet: Kaiming He, Xiangyu Zhang, Shaoqing Ren and Jian Sun, "Identity mappings in deep residual networks",
ECCV 2016, arXiv 1603.05027.

Differs from the paper: the shortcut of a block that changes shape has a BatchNorm and a ReLU of its own before its 1x1
convolution, where the paper lets it share those of the residual branch; and the first block starts like all the others,
so the stem is a convolution alone. The last activation, before the average, is the paper's (its appendix).

Shapes: B images, C channels, H and W height and width, K classes.
"""

from functools import partial

import torch
from torch import Tensor, nn

from backbones.models.base import Backbone, ImageShape, NumClasses, StageDepths, Stem, make_constructor
from backbones.models.layers import Block, ResidualBlock, conv1x1, conv3x3, init_conv_net, make_stages, make_stem


class PreActBasicBlock(ResidualBlock):
    """Two 3x3 convolutions, each after its BatchNorm and ReLU (figure 4, e)."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.out_channels = width
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, width, stride=stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.shortcut = make_shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, width, H/stride, W/stride]
        y = self.conv1(torch.relu_(self.norm1(x)))
        y = self.conv2(torch.relu_(self.norm2(y)))
        return y + self.shortcut(x)


class PreActBottleneck(ResidualBlock):
    """1x1 to narrow, 3x3, 1x1 to widen, each after its BatchNorm and ReLU."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.out_channels = 4 * width
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, width)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride=stride)
        self.norm3 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, self.out_channels)
        self.shortcut = make_shortcut(in_channels, self.out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, 4 width, H/stride, W/stride]
        y = self.conv1(torch.relu_(self.norm1(x)))
        y = self.conv2(torch.relu_(self.norm2(y)))
        y = self.conv3(torch.relu_(self.norm3(y)))
        return y + self.shortcut(x)


def make_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The identity where the shape stays, else a projection after an activation."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(
        nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), conv1x1(in_channels, out_channels, stride=stride)
    )


class PreActResNet(Backbone):
    """Residual network with pre-activation (arXiv 1603.05027), for images of any size."""

    def __init__(
        self,
        block: Block,
        stage_depths: StageDepths,
        image_shape: ImageShape,
        num_classes: NumClasses,
        *,
        stem: Stem = "cifar",
    ) -> None:
        super().__init__()
        self.stem = make_stem(stem, image_shape[0], 64, activation=False)
        self.stages, channels = make_stages(block, 64, 64, stage_depths)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)

    def pool(self, x: Tensor) -> Tensor:
        return torch.relu_(self.norm(x)).mean(dim=(2, 3))


preact_resnet = make_constructor(PreActResNet, init_conv_net)
preactresnet18 = partial(preact_resnet, PreActBasicBlock, (2, 2, 2, 2))
preactresnet34 = partial(preact_resnet, PreActBasicBlock, (3, 4, 6, 3))
preactresnet50 = partial(preact_resnet, PreActBottleneck, (3, 4, 6, 3))
preactresnet101 = partial(preact_resnet, PreActBottleneck, (3, 4, 23, 3))
preactresnet152 = partial(preact_resnet, PreActBottleneck, (3, 8, 36, 3))
