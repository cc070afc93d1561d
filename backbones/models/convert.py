"""Weights between the state dicts of torchvision or timm and our trees, by explicit key maps."""

import re
from bisect import bisect
from collections.abc import Callable, Collection
from typing import NamedTuple

from torch import Tensor

from backbones.errors import check_known
from backbones.models.state_dict import StateDict
from backbones.types import ModelState, Params


class Format(NamedTuple):
    """How another library names and shapes the weights of a model."""

    rules: list[tuple[str, str | Callable[[re.Match[str]], str]]]
    """(pattern, replacement), applied one after another: our name of a leaf -> theirs."""
    linear_as_conv: bool = False
    """Whether the layers `fc1` and `fc2` are 1x1 convolutions there."""
    bias_before_norm: bool = False
    """Whether convolutions before a BatchNorm have a bias there. It only shifts the running mean."""


TORCHVISION_RESNET = Format(
    [
        (r"^stem\.0\.", "conv1."),
        (r"^stem\.1\.", "bn1."),
        (r"^stages\.(\d)\.", lambda match: f"layer{int(match[1]) + 1}."),
        (r"\.norm(\d)\.", r".bn\1."),
        (r"\.shortcut\.", ".downsample."),
        (r"^head\.", "fc."),
    ]
)
TORCHVISION_VGG = Format(
    [(r"^head\.2\.", "classifier.0."), (r"^head\.5\.", "classifier.3."), (r"^head\.8\.", "classifier.6.")]
)
TORCHVISION_VGG_BN = TORCHVISION_VGG._replace(bias_before_norm=True)
TORCHVISION_MOBILENET_V2 = Format(
    [
        (r"^stem\.", "features.0."),
        (r"^last\.", "features.18."),
        (r"^head\.", "classifier.1."),
        (r"^blocks\.0\.depthwise\.", "features.1.conv.0.0."),  # the first block does not expand
        (r"^blocks\.0\.norm1\.", "features.1.conv.0.1."),
        (r"^blocks\.0\.project\.", "features.1.conv.1."),
        (r"^blocks\.0\.norm2\.", "features.1.conv.2."),
        (r"^blocks\.(\d+)\.", lambda match: f"features.{int(match[1]) + 1}.conv."),
        (r"\.expand\.", ".0."),
        (r"\.depthwise\.", ".1.0."),
        (r"\.norm1\.", ".1.1."),
        (r"\.project\.", ".2."),
        (r"\.norm2\.", ".3."),
    ]
)
TIMM_SE_RESNET = Format([*TORCHVISION_RESNET.rules, (r"\.attention\.", ".se.")], linear_as_conv=True)
TIMM_VIT = Format([(r"^patch_embed\.", "patch_embed.proj.")])
TIMM_CONVNEXT = Format(
    [
        (r"^head\.", "head.fc."),
        (r"^norm\.", "head.norm."),
        (r"^stages\.(\d)\.0\.", r"stages.\1.downsample."),
        (r"^stages\.(\d)\.1\.", r"stages.\1.blocks."),
        (r"\.depthwise\.", ".conv_dw."),
        (r"\.fc(\d)\.", r".mlp.fc\1."),
        (r"\.scale$", ".gamma"),
    ]
)
TIMM_CONVNEXT_CONV_MLP = TIMM_CONVNEXT._replace(linear_as_conv=True)
TIMM_MIXER = Format(
    [(r"^patch_embed\.", "stem.proj."), (r"\.token_mlp\.", ".mlp_tokens."), (r"\.channel_mlp\.", ".mlp_channels.")]
)

TORCHVISION_VIT = Format(
    [
        (r"^cls_token$", "class_token"),
        (r"^pos_embed$", "encoder.pos_embedding"),
        (r"^patch_embed\.", "conv_proj."),
        (r"^norm\.", "encoder.ln."),
        (r"^head\.", "heads.head."),
        (r"^blocks\.", "encoder.layers.encoder_layer_"),
        (r"\.norm(\d)\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
        (r"\.attn\.proj\.", ".self_attention.out_proj."),
        (r"\.fc1\.", ".0."),
        (r"\.fc2\.", ".3."),
    ]
)
TORCHVISION_CONVNEXT = Format(
    [
        (r"^stem\.", "features.0."),
        (r"^norm\.", "classifier.0."),
        (r"^head\.", "classifier.2."),
        (r"^stages\.(\d)\.0\.", lambda match: f"features.{2 * int(match[1])}."),
        (r"^stages\.(\d)\.1\.", lambda match: f"features.{2 * int(match[1]) + 1}."),
        (r"\.depthwise\.", ".block.0."),
        (r"\.norm\.", ".block.2."),
        (r"\.fc1\.", ".block.3."),
        (r"\.fc2\.", ".block.5."),
        (r"\.scale$", ".layer_scale"),
    ]
)
TIMM_MOBILENET_V2 = Format(
    [
        (r"^stem\.0\.", "conv_stem."),
        (r"^stem\.1\.", "bn1."),
        (r"^last\.0\.", "conv_head."),
        (r"^last\.1\.", "bn2."),
        (r"^head\.", "classifier."),
        (r"^blocks\.0\.depthwise\.", "blocks.0.0.conv_dw."),  # the first block does not expand
        (r"^blocks\.0\.norm1\.", "blocks.0.0.bn1."),
        (r"^blocks\.0\.project\.", "blocks.0.0.conv_pw."),
        (r"^blocks\.0\.norm2\.", "blocks.0.0.bn2."),
        (r"\.expand\.0\.", ".conv_pw."),
        (r"\.expand\.1\.", ".bn1."),
        (r"\.depthwise\.", ".conv_dw."),
        (r"\.norm1\.", ".bn2."),
        (r"\.project\.", ".conv_pwl."),
        (r"\.norm2\.", ".bn3."),
        (r"^blocks\.(\d+)\.(?!\d)", lambda match: _timm_block(int(match[1]))),
    ]
)


def _timm_block(i: int) -> str:
    """The prefix of block i, which timm numbers within groups of one width."""
    first = (0, 1, 3, 6, 10, 13, 16)
    group = bisect(first, i) - 1
    return f"blocks.{group}.{i - first[group]}."


OTHER_FORMATS = [TORCHVISION_VIT, TORCHVISION_CONVNEXT, TIMM_MOBILENET_V2]
"""What is read beside the formats below."""

FORMATS = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), TORCHVISION_RESNET),
    **dict.fromkeys(("resnext50-32x4d", "resnext101-32x8d", "resnext101-64x4d"), TORCHVISION_RESNET),
    **dict.fromkeys(("se-resnet50", "se-resnet101", "se-resnet152"), TIMM_SE_RESNET),
    **dict.fromkeys(("vgg11", "vgg13", "vgg16", "vgg19"), TORCHVISION_VGG),
    **dict.fromkeys(("vgg11-bn", "vgg13-bn", "vgg16-bn", "vgg19-bn"), TORCHVISION_VGG_BN),
    "mobilenet-v2": TORCHVISION_MOBILENET_V2,
    **dict.fromkeys(("vit-tiny", "vit-small", "vit-base", "vit-large", "vit-huge"), TIMM_VIT),
    "convnext-tiny": TIMM_CONVNEXT,
    "convnext-atto": TIMM_CONVNEXT_CONV_MLP,
    "mixer-small": TIMM_MIXER,
}
"""Model -> the format of its published weights."""


def to_our_names(state_dict: StateDict, ours: StateDict) -> StateDict:
    """A state dict of torchvision or timm under our names; any other one comes back with its own.

    Args:
        state_dict: their name -> tensor. Unknown names are kept; leaves of another kind of head become `head.*` too.
        ours: name -> leaf of the model that is to have them; only its shape matters.
    """
    state_dict = _fold_biases(state_dict, kept=ours)
    formats = [*{id(format): format for format in FORMATS.values()}.values(), *OTHER_FORMATS]
    names = [{_rename(name, format): name for name in ours} for format in formats]
    most = max([{name: name for name in ours}, *names], key=lambda theirs: len(state_dict.keys() & theirs.keys()))
    heads = {theirs.partition(".")[0] for theirs, name in most.items() if name.startswith("head.")}

    def rename(name: str) -> str:
        first, _, rest = name.partition(".")
        return most.get(name, f"head.{rest}" if first in heads else name)

    renamed = {rename(name): leaf for name, leaf in state_dict.items()}
    return {name: _squeeze(leaf, ours[name]) if name in ours else leaf for name, leaf in renamed.items()}


def export_weights(name: str, params: Params, model_state: ModelState) -> StateDict:
    """The weights of a model, one of `FORMATS`, as a state dict of torchvision or timm, on the CPU.

    Raises:
        InputError: the model has no format.
    """
    format = FORMATS[check_known("format of a model", name, FORMATS)]
    state_dict = {}
    for our_name, leaf in {**params, **model_state}.items():
        if format.linear_as_conv and re.search(r"\.fc\d\.weight$", our_name):
            leaf = leaf[:, :, None, None]
        state_dict[_rename(our_name, format)] = leaf.detach().cpu().contiguous()
    if format.bias_before_norm:
        kernels = {key: leaf for key, leaf in state_dict.items() if leaf.ndim == 4}
        state_dict |= {key.replace("weight", "bias"): leaf.new_zeros(len(leaf)) for key, leaf in kernels.items()}
    return state_dict


def _rename(name: str, format: Format) -> str:
    for pattern, replacement in format.rules:
        name = re.sub(pattern, replacement, name)
    return name


def _squeeze(theirs: Tensor, ours: Tensor) -> Tensor:
    """Drop the height and width of a 1x1 convolution or a layer scale, if ours has none."""
    return theirs[..., 0, 0] if theirs.shape == (*ours.shape, 1, 1) else theirs


def _fold_biases(state_dict: StateDict, kept: Collection[str]) -> StateDict:
    """Remove the biases of convolutions but those that are `kept`, and subtract them from the running means of the
    norms that follow."""
    folded = dict(state_dict)
    for key in state_dict:
        match = re.fullmatch(r"features\.(\d+)\.running_mean", key)
        bias_key = f"features.{int(match[1]) - 1}.bias" if match else None
        if bias_key in folded and bias_key not in kept:
            folded[key] = folded[key] - folded.pop(bias_key)
    return folded
