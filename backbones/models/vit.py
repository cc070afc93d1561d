"""ViT: Alexey Dosovitskiy et al., "An image is worth 16x16 words: transformers for image recognition at scale",
ICLR 2021, arXiv 2010.11929. Tiny and small are from DeiT, arXiv 2012.12877, table 1.

Differs from the paper: the patch size is 4 by default, for images of 32x32; the head is one linear layer, as the paper
has it for fine-tuning; position embeddings and linear layers start from a normal distribution of standard deviation
0.02, truncated at two standard deviations (DeiT).

Shapes: B images, C channels, H and W height and width, N tokens (patches and one class token), D embedding dimension,
K classes.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.errors import Count, InputError, Probability
from backbones.models.base import Backbone, ImageShape, NumClasses, PatchSize, make_constructor
from backbones.models.layers import count_patches


class Attention(nn.Module):
    """Multi-head self-attention (appendix A, equations 5 to 8)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # [B, N, D] -> [B, N, D]
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, N, D/heads]
        dropout = self.dropout.p if self.training else 0.0
        # q, k and v have autocast's dtype already; within it, torch.func cannot differentiate attention with dropout.
        with torch.autocast(x.device.type, enabled=False):
            x = attend(q, k, v, dropout)
        return self.dropout(self.proj(x.transpose(1, 2).flatten(2)))


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Dropout of softmax(q k^T / sqrt(D/heads)), times v (equations 6 and 7), each [B, heads, N, D/heads]."""
    if q.is_cpu and q.dtype == torch.bfloat16:  # where torch's fused operator takes five times as long
        weights = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1, dtype=torch.float32).to(v.dtype)
        return F.dropout(weights, dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)


class Mlp(nn.Module):
    """Two linear layers with a GELU between (section 3.1)."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # [B, N, D] -> [B, N, D]
        x = self.dropout(F.gelu(self.fc1(x)))
        return self.dropout(self.fc2(x))


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP, each around a residual (equations 2 and 3)."""

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, mlp_width, dropout)

    def forward(self, x: Tensor) -> Tensor:  # [B, N, D] -> [B, N, D]
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(Backbone):
    """Vision Transformer (arXiv 2010.11929, figure 1, equations 1 to 4).

    Args:
        width: D, the embedding dimension.
        depth: number of encoder blocks.
        heads: attention heads in each block; divides the width.
        mlp_width: hidden dimension of each block's MLP.
        dropout: probability of dropping, after the embedding, in attention and in the MLPs.

    Raises:
        InputError: the patches do not tile the image, or the heads do not divide the width.
    """

    STEM = ("patch_embed", "cls_token", "pos_embed")
    LAYERS = "blocks"

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: NumClasses,
        *,
        patch_size: PatchSize = 4,
        width: Count = 192,
        depth: Count = 12,
        heads: Count = 3,
        mlp_width: Count = 768,
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        num_patches = count_patches(patch_size, image_shape)
        if width % heads:
            raise InputError(f"{heads} attention heads do not divide a width of {width}; change one of them")
        self.patch_embed = nn.Conv2d(image_shape[0], width, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + num_patches, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, mlp_width, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)  # [B, N - 1, D]
        cls_token = self.cls_token.expand(len(images), -1, -1)
        return self.dropout(torch.cat([cls_token, patches], dim=1) + self.pos_embed)  # [B, N, D]

    def pool(self, x: Tensor) -> Tensor:
        return self.norm(x[:, 0])


def init_vit(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise one layer: truncated normal of standard deviation 0.02 for matrices and embeddings, zero biases."""
    if isinstance(module, nn.LayerNorm):
        module.reset_parameters()  # ones and zeros: draws nothing
        return
    for name, leaf in module.named_parameters(recurse=False):
        if name == "bias":
            nn.init.zeros_(leaf)
        else:
            nn.init.trunc_normal_(leaf, std=0.02, a=-0.04, b=0.04, generator=generator)


vit = make_constructor(ViT, init_vit)

vit_tiny = partial(vit)
vit_small = partial(vit, width=384, heads=6, mlp_width=1536)
vit_base = partial(vit, width=768, heads=12, mlp_width=3072)
vit_large = partial(vit, width=1024, depth=24, heads=16, mlp_width=4096)
vit_huge = partial(vit, width=1280, depth=32, heads=16, mlp_width=5120)
