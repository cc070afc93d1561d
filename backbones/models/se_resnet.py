"""SE-ResNet: Jie Hu, Li Shen, Samuel Albanie, Gang Sun and Enhua Wu, "Squeeze-and-excitation networks", CVPR 2018,
arXiv 1709.01507.

ResNet, whose blocks reweight their channels before the shortcut is added (figure 3). The paper's reduction is 16
(section 6.1).

Shapes: B images, C channels, H and W height and width.
"""

from functools import partial

import torch
from torch import Tensor, nn

from backbones.models.base import ImageShape, Model, NumClasses, StageDepths, Stem
from backbones.models.layers import Block, Reduction
from backbones.models.resnet import BasicBlock, Bottleneck, resnet
from backbones.ranges import checked


class SqueezeExcitation(nn.Module):
    """One weight in (0, 1) for each channel, from the means of all channels (equations 2 to 4)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, H, W]
        squeezed = torch.relu_(self.fc1(x.mean(dim=(2, 3))))
        return x * torch.sigmoid(self.fc2(squeezed))[:, :, None, None]


@checked
def se_resnet(
    block: Block,
    stage_depths: StageDepths,
    image_shape: ImageShape,
    num_classes: NumClasses,
    *,
    stem: Stem = "cifar",
    reduction: Reduction = 16,
) -> Model:
    """Squeeze-and-excitation residual network (arXiv 1709.01507), for images of any size."""
    block = partial(block, attention=partial(SqueezeExcitation, reduction=reduction))
    return resnet(block, stage_depths, image_shape, num_classes, stem=stem)


se_resnet18 = partial(se_resnet, BasicBlock, (2, 2, 2, 2))
se_resnet34 = partial(se_resnet, BasicBlock, (3, 4, 6, 3))
se_resnet50 = partial(se_resnet, Bottleneck, (3, 4, 6, 3))
se_resnet101 = partial(se_resnet, Bottleneck, (3, 4, 23, 3))
se_resnet152 = partial(se_resnet, Bottleneck, (3, 8, 36, 3))
