"""ViT: Alexey Dosovitskiy et al., "An image is worth 16x16 words: transformers for image recognition at scale",
ICLR 2021, arXiv 2010.11929. Tiny and small are from DeiT, arXiv 2012.12877, table 1.

Differs from the paper: the patch size is 4 by default, for images of 32x32; the head is one linear layer, as the paper
has it for fine-tuning; position embeddings and linear layers start from a normal distribution of standard deviation
0.02, as DeiT's, truncated at two standard deviations. The options `patch_embed`, `pool`, `positions`, `registers` and
`drop_path` are of later papers.

Shapes: B images, C channels, H and W height and width, N tokens (patches, class token, registers), D embedding
dimension, K classes.
"""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.errors import InputError
from backbones.models.base import Backbone, ImageShape, Model, NumClasses, PatchSize, make_constructor
from backbones.models.cpu_layers import Linear
from backbones.models.layers import DropPath, Mlp, conv3x3, count_patches, drop_paths
from backbones.ranges import Count, NonNegativeInt, Probability
from backbones.types import Params


class Attention(nn.Module):
    """Multi-head self-attention (appendix A, equations 5 to 8)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # [B, N, D] -> [B, N, D]
        q, k, v = split_heads(self.qkv(x), self.heads)
        dropout = self.dropout.p if self.training else 0.0
        # q, k and v have autocast's dtype already; within it, torch.func cannot differentiate attention with dropout.
        with torch.autocast(x.device.type, enabled=False):
            x = attend(q, k, v, dropout)
        return self.dropout(self.proj(x.transpose(1, 2).flatten(2)))


def split_heads(qkv: Tensor, heads: int) -> list[Tensor]:
    """Queries, keys and values of each token: [B, N, 3 D] -> three of [B, heads, N, D/heads]."""
    return [each.transpose(1, 2) for each in qkv.unflatten(2, (3, heads, -1)).unbind(2)]


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Dropout of softmax(q k^T / sqrt(D/heads)), times v (equations 6 and 7), each [B, heads, N, D/heads]."""
    if q.is_cpu and q.dtype == torch.bfloat16:  # where torch's fused operator takes five times as long
        return F.dropout(attention_matrix(q, k), dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)


def attention_matrix(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D/heads)), [B, heads, N, N], of queries and keys [B, heads, N, D/heads]."""
    return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)  # which adds up in float32


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP, each with a residual around it (equations 2 and 3; section 3.1)."""

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, mlp_width, dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:  # [B, N, D] -> [B, N, D]
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def make_conv_stem(in_channels: int, width: int, patch_size: int) -> nn.Sequential:
    """3x3 convolutions of stride 2, each with BatchNorm and ReLU, that double the channels up to D; then a 1x1 one.

    Source: Xiao et al., "Early convolutions help transformers see better", arXiv 2106.14881, section 4.

    Raises:
        InputError: the patch size is not a power of two, or too large for D.
    """
    halvings = patch_size.bit_length() - 1
    if patch_size != 2**halvings or patch_size < 2 or width % 2 ** (halvings - 1):
        raise InputError(
            "convolutions of stride 2 make patches of 2, 4, 8 or 16 pixels, and double their channels up to the width; "
            f"got patches of {patch_size} and a width of {width}: set patch_size to one of these, and width to a "
            "multiple of it"
        )
    layers = nn.Sequential()
    channels = in_channels
    for i in reversed(range(halvings)):
        layers.extend([conv3x3(channels, width >> i, stride=2), nn.BatchNorm2d(width >> i), nn.ReLU(inplace=True)])
        channels = width >> i
    return layers.append(nn.Conv2d(width, width, 1))


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """Fixed position embeddings of a grid of patches, [1, rows columns, width] (Beyer et al., arXiv 2205.01580).

    A quarter of the width each: sine and cosine of x, sine and cosine of y, at frequencies from 1 down to 1/10000.
    """
    frequencies = 10000 ** -torch.linspace(0, 1, width // 4)
    y, x = (torch.outer(torch.arange(n, dtype=torch.float32), frequencies) for n in (rows, columns))
    x, y = x.expand(rows, -1, -1), y[:, None].expand(-1, columns, -1)  # [rows, columns, width / 4]
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=2).flatten(0, 1)[None]


class ViT(Backbone):
    """Vision Transformer (arXiv 2010.11929, figure 1, equations 1 to 4).

    Args:
        width: D, the embedding dimension.
        depth: number of encoder blocks.
        heads: attention heads in each block; divides the width.
        mlp_width: hidden dimension of each block's MLP.
        dropout: probability of dropping, after the embedding, in attention and in the MLPs.
        drop_path: probability of dropping the last block of a sample; less for earlier blocks (arXiv 1603.09382).
        patch_embed: patches are embedded by one linear layer, or by a few convolutions of stride 2 (arXiv 2106.14881).
        pool: what enters the head: the class token, or the mean of the patches, without a class token (arXiv
            2205.01580).
        positions: embeddings of the positions are learned, or fixed sines and cosines (arXiv 2205.01580).
        registers: learned tokens beside the patches, which attention may use as memory (arXiv 2309.16588).

    Raises:
        InputError: the patches do not tile the image, or the heads do not divide the width.
    """

    STEM = ("patch_embed", "cls_token", "pos_embed", "register_tokens")
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
        drop_path: Probability = 0.0,
        patch_embed: Literal["linear", "conv"] = "linear",
        pool: Literal["token", "mean"] = "token",
        positions: Literal["learned", "sincos"] = "learned",
        registers: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.num_patches = count_patches(patch_size, image_shape)
        if width % heads:
            raise InputError(f"{heads} attention heads do not divide a width of {width}; change one of them")
        if positions == "sincos" and width % 4:
            raise InputError(f"positions by sines and cosines take a width that is a multiple of 4; got {width}")
        channels, height, length = image_shape
        self.grid = height // patch_size, length // patch_size
        if patch_embed == "conv":
            self.patch_embed: nn.Module = make_conv_stem(channels, width, patch_size)
        else:
            self.patch_embed = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        num_class_tokens = 1 if pool == "token" else 0
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if num_class_tokens else None
        pos_embed = torch.empty(1, num_class_tokens + self.num_patches, width)
        if positions == "learned":
            self.pos_embed: Tensor = nn.Parameter(pos_embed)
        else:
            self.register_buffer("pos_embed", pos_embed)
        self.register_tokens = nn.Parameter(torch.empty(1, registers, width)) if registers else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(EncoderBlock(width, heads, mlp_width, dropout, drop) for drop in drop_paths(drop_path, depth))
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)  # [B, patches, D]
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.pos_embed
        if self.register_tokens is not None:
            x = torch.cat([x, self.register_tokens.expand(x.shape[0], -1, -1)], dim=1)
        return self.dropout(x)  # [B, N, D]

    def pool(self, x: Tensor) -> Tensor:
        if self.cls_token is not None:
            return self.norm(x[:, 0])
        return self.norm(x[:, : self.num_patches]).mean(dim=1)


def attention_weights(model: Model, params: Params, features: dict[str, Tensor]) -> dict[str, Tensor]:
    """softmax(q k^T / sqrt(D/heads)) of each block by its name, [B, heads, N, N]; a row is a query, and sums to 1.

    Computed anew from what enters the blocks, as training does without these matrices where attention is one operator.

    Args:
        model: a ViT.
        params: all of its parameters, also those that are frozen.
        features: what `model.features` gives for B images.
    """
    found, x = {}, features["stem"]
    for i, block in enumerate(model.skeleton.get_submodule("blocks").children()):
        assert isinstance(block, EncoderBlock)
        leaves = {name.removeprefix(f"blocks.{i}."): leaf for name, leaf in params.items()}
        x = F.layer_norm(x, x.shape[-1:], leaves["norm1.weight"], leaves["norm1.bias"], block.norm1.eps)
        q, k, _ = split_heads(F.linear(x, leaves["attn.qkv.weight"], leaves["attn.qkv.bias"]), block.attn.heads)
        found[f"block{i + 1}"] = attention_matrix(q, k)
        x = features[f"block{i + 1}"]
    return found


def init_vit(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise one layer: truncated normal of standard deviation 0.02 for matrices and embeddings, zero biases."""
    if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
        module.reset_parameters()  # ones and zeros: draws nothing
        return
    if isinstance(module, ViT) and "pos_embed" in module._buffers:
        module.pos_embed.zero_()  # that of the class token, which has no position
        module.pos_embed[:, -module.num_patches :] = sincos_positions(*module.grid, module.pos_embed.shape[2])
    for name, leaf in module.named_parameters(recurse=False):
        if name == "bias":
            nn.init.zeros_(leaf)
        else:
            nn.init.trunc_normal_(leaf, std=0.02, a=-0.04, b=0.04, generator=generator)


vit = make_constructor(ViT, init_vit)

vit_tiny = partial(vit)  # an object of its own, so that it is stored and printed under this name
vit_small = partial(vit, width=384, heads=6, mlp_width=1536)
vit_base = partial(vit, width=768, heads=12, mlp_width=3072)
vit_large = partial(vit, width=1024, depth=24, heads=16, mlp_width=4096)
vit_huge = partial(vit, width=1280, depth=32, heads=16, mlp_width=5120)
