"""CBAM-ResNet: Sanghyun Woo, Jongchan Park, Joon-Young Lee and In So Kweon, "CBAM: convolutional block attention
module", ECCV 2018, arXiv 1807.06521.

ResNet, whose blocks reweight their channels, then their positions, before the shortcut is added (figure 3). No
BatchNorm follows the 7x7 convolution: equation 3 has none. The paper's reduction is 16 (section 4).

Shapes: B images, C channels, H and W height and width.
"""

from functools import partial

import torch
from torch import Tensor, nn

from backbones.models.base import ImageShape, Model, NumClasses, StageDepths, Stem
from backbones.models.layers import Block, Reduction, global_max
from backbones.models.resnet import BasicBlock, Bottleneck, resnet
from backbones.ranges import checked


class ChannelAttention(nn.Module):
    """One weight in (0, 1) for each channel: one MLP, applied to the means and to the maxima (equation 2)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, 1, 1]
        pooled = torch.stack([x.mean(dim=(2, 3)), global_max(x)])  # [2, B, C]
        return torch.sigmoid(self.fc2(torch.relu_(self.fc1(pooled))).sum(dim=0))[:, :, None, None]


class SpatialAttention(nn.Module):
    """One weight in (0, 1) for each position, from the mean and the maximum over its channels (equation 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, 1, H, W]
        pooled = torch.cat([x.mean(dim=1, keepdim=True), x.max(dim=1, keepdim=True).values], dim=1)
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


@checked
def cbam_resnet(
    block: Block,
    stage_depths: StageDepths,
    image_shape: ImageShape,
    num_classes: NumClasses,
    *,
    stem: Stem = "cifar",
    reduction: Reduction = 16,
) -> Model:
    """Residual network with channel and spatial attention (arXiv 1807.06521), for images of any size."""
    block = partial(block, attention=partial(CBAM, reduction=reduction))
    return resnet(block, stage_depths, image_shape, num_classes, stem=stem)


cbam_resnet18 = partial(cbam_resnet, BasicBlock, (2, 2, 2, 2))
cbam_resnet34 = partial(cbam_resnet, BasicBlock, (3, 4, 6, 3))
cbam_resnet50 = partial(cbam_resnet, Bottleneck, (3, 4, 6, 3))
cbam_resnet101 = partial(cbam_resnet, Bottleneck, (3, 4, 23, 3))
cbam_resnet152 = partial(cbam_resnet, Bottleneck, (3, 8, 36, 3))
