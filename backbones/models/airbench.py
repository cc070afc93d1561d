"""airbench: Keller Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498.

The small network of airbench94. The filters of its first layer whiten the training images, and are not trained: the
train state that `Experiment.make` gives has them. Without images, as after `Model.init` alone, they are a random
orthonormal basis. The last pool is over all positions, which is the paper's 3x3 pool for images of 32x32.

Shapes: B images, C channels, H and W height and width, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.models.base import Backbone, ImageShape, NumClasses, make_constructor
from backbones.models.layers import check_image_size, conv3x3, global_max
from backbones.types import ModelState, Params

WIDTHS = (64, 256, 256)
"""Channels of the three stages (section 3.1)."""
MOMENTUM, EPS = 0.4, 1e-12
"""Of the norms."""
PIXELS_AT_ONCE = 5000 * 32 * 32
"""Pixels of the images whose patches are in memory at once: of RGB images, 12 numbers for each pixel."""


class BiasNorm(nn.BatchNorm2d):
    """BatchNorm with a bias and no weight (section 3.1)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPS, momentum=MOMENTUM)
        self.register_parameter("weight", None)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, H, W]
        if self.training:
            self.get_buffer("num_batches_tracked").add_(1)
        # torch.func.grad failed on CUDA where there was no weight (torch 2.11); a computed one would not be folded
        one = None if torch.compiler.is_exporting() else torch.ones_like(self.bias)
        return F.batch_norm(x, self.running_mean, self.running_var, one, self.bias, self.training, MOMENTUM, EPS)


class ConvGroup(nn.Module):
    """3x3 convolution, max-pool that halves the image, norm, GELU; 3x3 convolution, norm, GELU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels)
        self.norm1 = BiasNorm(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.norm2 = BiasNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, out_channels, H/2, W/2]
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class ScaledHead(nn.Linear):
    """Linear layer whose logits are divided by 9 (section 3.1)."""

    def forward(self, x: Tensor) -> Tensor:  # [B, D] -> [B, K]
        return super().forward(x) / 9


class Airbench(Backbone):
    """Small ConvNet that trains in seconds (arXiv 2404.00498), for images of 9x9 or more.

    2x2 filters, three groups of convolutions, global maximum, scaled head.

    Raises:
        InputError: the image is smaller than that.
    """

    STEM = ("whiten",)

    def __init__(self, image_shape: ImageShape, num_classes: NumClasses) -> None:
        super().__init__()
        check_image_size(image_shape, smallest=9)
        in_channels = image_shape[0]
        channels = 2 * in_channels * 2 * 2  # each filter of a basis of the patches, and its negative
        self.whiten = nn.Conv2d(in_channels, channels, 2)
        self.whiten.weight.requires_grad_(False)
        self.stages = nn.Sequential()
        for width in WIDTHS:
            self.stages.append(ConvGroup(channels, width))
            channels = width
        self.head = ScaledHead(channels, num_classes, bias=False)

    def embed(self, images: Tensor) -> Tensor:
        return F.gelu(self.whiten(images))

    def pool(self, x: Tensor) -> Tensor:
        return global_max(x)


def init_airbench(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise one layer: an orthonormal basis and its negative, then convolutions that start close to the identity.

    Source: section 3.2 (first layer) and 3.3 (the others: as torch's own, with the first filters set to the identity).
    """
    match module:
        case nn.Conv2d(kernel_size=(2, 2)):
            half = len(module.weight) // 2
            basis = nn.init.orthogonal_(torch.empty(half, half), generator=generator).view_as(module.weight[:half])
            module.weight.data.copy_(torch.cat([basis, -basis]))
            nn.init.zeros_(module.get_parameter("bias"))
        case nn.Conv2d():
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            nn.init.dirac_(module.weight.data[: module.in_channels])
        case nn.Linear():
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
        case BiasNorm():
            module.reset_running_stats()
            nn.init.zeros_(module.bias)


def whiten(params: Params, model_state: ModelState, images: Tensor) -> tuple[Params, ModelState]:
    """Set the filters of the first layer to those that whiten the 2x2 patches of images [N, C, H, W], normalized.

    They are the eigenvectors of the covariance of the patches, each over the root of its eigenvalue, and their
    negatives (section 3.2). So responses to a patch have no correlation, and variance 1.
    """
    weight = model_state["whiten.weight"]
    total, count = torch.zeros((), device=images.device), 0
    for part in images.split(max(PIXELS_AT_ONCE // images[0, 0].numel(), 1)):
        patches = F.unfold(part, 2).transpose(1, 2).flatten(0, 1)  # [N positions, C 2 2]
        total, count = total + patches.T @ patches, count + len(patches)
    covariance = total / count
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance.double())
    filters = (eigenvectors / (eigenvalues + 5e-4).sqrt()).T.reshape(-1, *weight.shape[1:])
    return params, {**model_state, "whiten.weight": torch.empty_like(weight).copy_(torch.cat([filters, -filters]))}


airbench = make_constructor(Airbench, init_airbench, whiten)
