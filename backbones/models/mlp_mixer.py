"""MLP-Mixer: Ilya Tolstikhin et al., "MLP-Mixer: an all-MLP architecture for vision", NeurIPS 2021, arXiv 2105.01601.

Differs from the paper: the patch size is 4 by default, for images of 32x32; the head does not start from zero, so that
gradients reach every parameter in the first step. Small is the paper's S (table 1); tiny, for CIFAR, is not in it.

Shapes: B images, C channels, H and W height and width, N tokens (patches), D embedding dimension, K classes.
"""

from functools import partial

import torch
from torch import Tensor, nn

from backbones.models.base import Backbone, ImageShape, NumClasses, PatchSize, make_constructor
from backbones.models.layers import Mlp, count_patches
from backbones.ranges import Count


class MixerBlock(nn.Module):
    """An MLP across tokens, then one across channels, each after a norm and around a residual (equation 1)."""

    def __init__(self, num_tokens: int, width: int, token_mlp_width: int, channel_mlp_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.token_mlp = Mlp(num_tokens, token_mlp_width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.channel_mlp = Mlp(width, channel_mlp_width)

    def forward(self, x: Tensor) -> Tensor:  # [B, N, D] -> [B, N, D]
        x = x + self.token_mlp(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mlp(self.norm2(x))


class Mixer(Backbone):
    """MLP-Mixer (arXiv 2105.01601, figure 1).

    Args:
        width: D, the embedding dimension.
        depth: number of blocks.
        token_mlp_width: hidden dimension of each block's MLP across tokens.
        channel_mlp_width: hidden dimension of each block's MLP across channels.

    Raises:
        InputError: the patches do not tile the image.
    """

    STEM = ("patch_embed",)
    LAYERS = "blocks"

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: NumClasses,
        *,
        patch_size: PatchSize = 4,
        width: Count = 512,
        depth: Count = 8,
        token_mlp_width: Count = 256,
        channel_mlp_width: Count = 2048,
    ) -> None:
        super().__init__()
        num_tokens = count_patches(patch_size, image_shape)
        self.patch_embed = nn.Conv2d(image_shape[0], width, patch_size, stride=patch_size)
        self.blocks = nn.Sequential(
            *(MixerBlock(num_tokens, width, token_mlp_width, channel_mlp_width) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        return self.patch_embed(images).flatten(2).transpose(1, 2)  # [B, N, D]

    def pool(self, x: Tensor) -> Tensor:
        return self.norm(x).mean(dim=1)


def init_mixer(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise one layer: LeCun normal for matrices and patches, zero biases, identity norms."""
    if isinstance(module, nn.LayerNorm):
        module.reset_parameters()  # ones and zeros: draws nothing
    else:
        nn.init.kaiming_normal_(module.get_parameter("weight"), nonlinearity="linear", generator=generator)
        nn.init.zeros_(module.get_parameter("bias"))


mlp_mixer = make_constructor(Mixer, init_mixer)

mixer_tiny = partial(mlp_mixer, width=192, token_mlp_width=96, channel_mlp_width=768)
mixer_small = partial(mlp_mixer)  # an object of its own, so that it is stored and printed under this name
