"""MLP-Mixer: Ilya Tolstikhin et al., "MLP-Mixer: an all-MLP architecture for vision", NeurIPS 2021, arXiv 2105.01601.

Differs from the paper: the patch size is 4 by default, for images of 32x32; the head does not start from zero, so that
gradients reach every parameter in the first step. Small is the paper's S (table 1); tiny, for CIFAR, is not in it.

Shapes: B images, C channels, H and W height and width, N tokens (patches), D embedding dimension, K classes.
"""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.errors import Count, checked
from backbones.models.base import Backbone, Model, make_model
from backbones.models.layers import check_patch_size


class Mlp(nn.Module):
    """Two linear layers with a GELU between (section 2)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:  # [..., width] -> [..., width]
        return self.fc2(F.gelu(self.fc1(x)))


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


class MixerModule(Backbone):
    """Patches, blocks, norm, average over tokens, head (figure 1)."""

    STEM = ("patch_embed",)

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        patch_size: int,
        width: int,
        depth: int,
        token_mlp_width: int,
        channel_mlp_width: int,
    ) -> None:
        super().__init__()
        in_channels, height, image_width = image_shape
        num_tokens = (height // patch_size) * (image_width // patch_size)
        self.patch_embed = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.blocks = nn.Sequential(
            *(MixerBlock(num_tokens, width, token_mlp_width, channel_mlp_width) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)

    def forward_features(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)  # [B, N, D]
        yield "stem", x
        for i, block in enumerate(self.blocks, start=1):
            x = block(x)
            yield f"block{i}", x
        yield "pooled", self.norm(x).mean(dim=1)


def init_mixer(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise one layer: LeCun normal for matrices and patches, zero biases, identity norms."""
    if isinstance(module, nn.LayerNorm):
        module.reset_parameters()  # ones and zeros: draws nothing
    else:
        nn.init.kaiming_normal_(module.get_parameter("weight"), nonlinearity="linear", generator=generator)
        nn.init.zeros_(module.get_parameter("bias"))


@checked
def mlp_mixer(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    patch_size: Count = 4,
    width: Count = 512,
    depth: Count = 8,
    token_mlp_width: Count = 256,
    channel_mlp_width: Count = 2048,
) -> Model:
    """MLP-Mixer (arXiv 2105.01601).

    Args:
        image_shape: channels, height and width of an image.
        num_classes: number of classes K.
        patch_size: side of a patch in pixels; divides the height and the width of the image.
        width: D, the embedding dimension.
        depth: number of blocks.
        token_mlp_width: hidden dimension of each block's MLP across tokens.
        channel_mlp_width: hidden dimension of each block's MLP across channels.

    Raises:
        InputError: a number is out of its range, or the patches do not tile the image.
    """
    check_patch_size(patch_size, image_shape)
    make_module = partial(
        MixerModule,
        image_shape=image_shape,
        num_classes=num_classes,
        patch_size=patch_size,
        width=width,
        depth=depth,
        token_mlp_width=token_mlp_width,
        channel_mlp_width=channel_mlp_width,
    )
    return make_model(make_module, init_mixer)


mixer_tiny = partial(mlp_mixer, width=192, token_mlp_width=96, channel_mlp_width=768)
mixer_small = partial(mlp_mixer)
