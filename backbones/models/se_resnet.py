"""SE-ResNet: Jie Hu, Li Shen, Samuel Albanie, Gang Sun and Enhua Wu, "Squeeze-and-excitation networks", CVPR 2018,
arXiv 1709.01507.

The trunk is ResNet's; each block reweights its channels before the shortcut is added (figure 3).

Shapes: B images, C channels, H and W height and width.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from backbones.errors import checked
from backbones.models.base import Model
from backbones.models.layers import Reduction, ResidualBlock, Stem, conv1x1, conv3x3
from backbones.models.resnet import make_shortcut, resnet


class SqueezeExcitation(nn.Module):
    """One weight in (0, 1) for each channel, from the means of all channels (equations 2 to 4)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, H, W]
        squeezed = torch.relu(self.fc1(x.mean(dim=(2, 3))))
        return x * torch.sigmoid(self.fc2(squeezed))[:, :, None, None]


class SEBasicBlock(ResidualBlock):
    """Two 3x3 convolutions, then squeeze-and-excitation."""

    def __init__(self, in_channels: int, width: int, stride: int, *, reduction: int) -> None:
        super().__init__()
        self.out_channels = width
        self.conv1 = conv3x3(in_channels, width, stride=stride)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.norm2 = nn.BatchNorm2d(width)
        self.se = SqueezeExcitation(width, reduction)
        self.shortcut = make_shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, width, H/stride, W/stride]
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return torch.relu(self.se(y) + self.shortcut(x))


class SEBottleneck(ResidualBlock):
    """1x1 to narrow, 3x3, 1x1 to widen, then squeeze-and-excitation."""

    def __init__(self, in_channels: int, width: int, stride: int, *, reduction: int) -> None:
        super().__init__()
        self.out_channels = 4 * width
        self.conv1 = conv1x1(in_channels, width)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride=stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, self.out_channels)
        self.norm3 = nn.BatchNorm2d(self.out_channels)
        self.se = SqueezeExcitation(self.out_channels, reduction)
        self.shortcut = make_shortcut(in_channels, self.out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, 4 width, H/stride, W/stride]
        y = torch.relu(self.norm1(self.conv1(x)))
        y = torch.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return torch.relu(self.se(y) + self.shortcut(x))


@checked
def se_resnet(
    block: Callable[..., ResidualBlock],
    stage_depths: Sequence[int],
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    stem: Stem = "cifar",
    reduction: Reduction = 16,
) -> Model:
    """Squeeze-and-excitation residual network (arXiv 1709.01507), for images of any size.

    Args:
        block: the kind of block in all stages.
        stage_depths: number of blocks in each stage.
        image_shape: channels, height and width of an image.
        num_classes: number of classes K.
        stem: first layers; cifar keeps the size of the image, imagenet quarters it.
        reduction: r, the factor by which the excitation narrows its channels (section 6.1: 16).

    Raises:
        InputError: the reduction is out of its range.
    """
    return resnet(partial(block, reduction=reduction), stage_depths, image_shape, num_classes, stem=stem)


se_resnet18 = partial(se_resnet, SEBasicBlock, (2, 2, 2, 2))
se_resnet34 = partial(se_resnet, SEBasicBlock, (3, 4, 6, 3))
se_resnet50 = partial(se_resnet, SEBottleneck, (3, 4, 6, 3))
se_resnet101 = partial(se_resnet, SEBottleneck, (3, 4, 23, 3))
se_resnet152 = partial(se_resnet, SEBottleneck, (3, 8, 36, 3))
