"""CBAM-ResNet: Sanghyun Woo, Jongchan Park, Joon-Young Lee and In So Kweon, "CBAM: convolutional block attention
module", ECCV 2018, arXiv 1807.06521.

The trunk is ResNet's; each block reweights its channels, then its positions, before the shortcut is added (figure 3).
No BatchNorm follows the 7x7 convolution: equation 3 has none.

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


class ChannelAttention(nn.Module):
    """One weight in (0, 1) for each channel: one MLP, applied to the means and to the maxima (equation 2)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, 1, 1]
        mean, maximum = (self.fc2(torch.relu(self.fc1(pooled))) for pooled in (x.mean(dim=(2, 3)), x.amax(dim=(2, 3))))
        return torch.sigmoid(mean + maximum)[:, :, None, None]


class SpatialAttention(nn.Module):
    """One weight in (0, 1) for each position, from the mean and the maximum over its channels (equation 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, 1, H, W]
        pooled = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return torch.sigmoid(self.conv(pooled))


class CBAM(nn.Module):
    """Channel attention, then spatial attention (equation 1)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, reduction)
        self.spatial = SpatialAttention()

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, H, W]
        x = self.channel(x) * x
        return self.spatial(x) * x


class CBAMBasicBlock(ResidualBlock):
    """Two 3x3 convolutions, then attention."""

    def __init__(self, in_channels: int, width: int, stride: int, *, reduction: int) -> None:
        super().__init__()
        self.out_channels = width
        self.conv1 = conv3x3(in_channels, width, stride=stride)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.norm2 = nn.BatchNorm2d(width)
        self.cbam = CBAM(width, reduction)
        self.shortcut = make_shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, width, H/stride, W/stride]
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return torch.relu(self.cbam(y) + self.shortcut(x))


class CBAMBottleneck(ResidualBlock):
    """1x1 to narrow, 3x3, 1x1 to widen, then attention."""

    def __init__(self, in_channels: int, width: int, stride: int, *, reduction: int) -> None:
        super().__init__()
        self.out_channels = 4 * width
        self.conv1 = conv1x1(in_channels, width)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride=stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, self.out_channels)
        self.norm3 = nn.BatchNorm2d(self.out_channels)
        self.cbam = CBAM(self.out_channels, reduction)
        self.shortcut = make_shortcut(in_channels, self.out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, 4 width, H/stride, W/stride]
        y = torch.relu(self.norm1(self.conv1(x)))
        y = torch.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return torch.relu(self.cbam(y) + self.shortcut(x))


@checked
def cbam_resnet(
    block: Callable[..., ResidualBlock],
    stage_depths: Sequence[int],
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    stem: Stem = "cifar",
    reduction: Reduction = 16,
) -> Model:
    """Residual network with channel and spatial attention (arXiv 1807.06521), for images of any size.

    Args:
        block: the kind of block in all stages.
        stage_depths: number of blocks in each stage.
        image_shape: channels, height and width of an image.
        num_classes: number of classes K.
        stem: first layers; cifar keeps the size of the image, imagenet quarters it.
        reduction: r, the factor by which the channel attention narrows its channels (section 4: 16).

    Raises:
        InputError: the reduction is out of its range.
    """
    return resnet(partial(block, reduction=reduction), stage_depths, image_shape, num_classes, stem=stem)


cbam_resnet18 = partial(cbam_resnet, CBAMBasicBlock, (2, 2, 2, 2))
cbam_resnet34 = partial(cbam_resnet, CBAMBasicBlock, (3, 4, 6, 3))
cbam_resnet50 = partial(cbam_resnet, CBAMBottleneck, (3, 4, 6, 3))
cbam_resnet101 = partial(cbam_resnet, CBAMBottleneck, (3, 4, 23, 3))
cbam_resnet152 = partial(cbam_resnet, CBAMBottleneck, (3, 8, 36, 3))
