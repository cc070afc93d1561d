"""ConvNeXt: Zhuang Liu, Hanzi Mao, Chao-Yuan Wu, Christoph Feichtenhofer, Trevor Darrell and Saining Xie, "A ConvNet
for the 2020s", CVPR 2022, arXiv 2201.03545. Atto is from ConvNeXt V2, arXiv 2301.00808, with the blocks of V1.

Differs from the paper: with the stem `cifar` the first patches are 2x2 pixels instead of 4x4.

Shapes: B images, C channels, H and W height and width, K classes.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.models.base import Backbone, ImageShape, NumClasses, StageDepths, Stem, make_constructor
from backbones.models.cpu_layers import DepthwiseConv, Linear
from backbones.models.layers import DropPath, check_image_size, drop_paths
from backbones.ranges import Probability


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels, at each position."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, H, W]
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """7x7 depthwise convolution, norm, MLP over channels, layer scale (figure 4; section 2.6)."""

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv(channels, 7, bias=True)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.fc1 = Linear(channels, 4 * channels)
        self.fc2 = Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.empty(channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, H, W]
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))  # [B, H, W, C]
        y = self.scale * self.fc2(F.gelu(self.fc1(y)))
        return x + self.drop_path(y.permute(0, 3, 1, 2))


class ConvNeXt(Backbone):
    """ConvNet with the design of a transformer (arXiv 2201.03545, table 9), for images of 16x16 or more.

    Args:
        widths: channels of each of the four stages.
        stem: size of the first patches; cifar has 2x2 pixels, imagenet 4x4, for images of 32x32 or more.
        drop_path: probability of dropping the last block of a sample; less for earlier blocks (table 5: 0.1).

    Raises:
        InputError: the image is too small.
    """

    def __init__(
        self,
        widths: Sequence[int],
        stage_depths: StageDepths,
        image_shape: ImageShape,
        num_classes: NumClasses,
        *,
        stem: Stem = "cifar",
        drop_path: Probability = 0.0,
    ) -> None:
        super().__init__()
        check_image_size(image_shape, smallest=32 if stem == "imagenet" else 16)
        patch_size = 4 if stem == "imagenet" else 2
        self.stem = nn.Sequential(nn.Conv2d(image_shape[0], widths[0], patch_size, patch_size), ChannelNorm(widths[0]))
        of_blocks = iter(drop_paths(drop_path, sum(stage_depths)))
        self.stages = nn.Sequential()
        for stage, (width, depth) in enumerate(zip(widths, stage_depths, strict=True)):
            downsample = nn.Sequential()
            if stage > 0:
                channels = widths[stage - 1]
                downsample.extend([ChannelNorm(channels), nn.Conv2d(channels, width, 2, stride=2)])
            blocks = nn.Sequential(*(ConvNeXtBlock(width, next(of_blocks)) for _ in range(depth)))
            self.stages.append(nn.Sequential(downsample, blocks))
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], num_classes)

    def pool(self, x: Tensor) -> Tensor:
        return self.norm(x.mean(dim=(2, 3)))


def init_convnext(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise one layer: truncated normal (standard deviation 0.02), zero biases, layer scales of 1e-6 (table 5)."""
    match module:
        case nn.LayerNorm():
            module.reset_parameters()  # ones and zeros: draws nothing
        case ConvNeXtBlock():
            nn.init.constant_(module.scale, 1e-6)
        case _:
            nn.init.trunc_normal_(module.get_parameter("weight"), std=0.02, generator=generator)
            nn.init.zeros_(module.get_parameter("bias"))


convnext = make_constructor(ConvNeXt, init_convnext)
convnext_atto = partial(convnext, (40, 80, 160, 320), (2, 2, 6, 2))
convnext_tiny = partial(convnext, (96, 192, 384, 768), (3, 3, 9, 3))
