"""Weights from elsewhere: other names, another head, another grid of positions, other channels.

B images, C channels, D the embedding dimension, N tokens.
"""

import math
import re
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.errors import InputError
from backbones.models.base import ImageShape, Model
from backbones.models.convert import to_our_names
from backbones.models.roles import owner_of
from backbones.models.state_dict import StateDict
from backbones.types import ModelState, Params

AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
"""Classifiers of torchvision's Inception networks that only their own training needs."""

OLDER_NAMES = {
    r"(denselayer\d+\.(?:norm|conv))\.([12]\.)": r"\1\2",  # of DenseNets
    r"(encoder_layer_\d+\.mlp)\.linear_1\.": r"\1.0.",  # of ViTs
    r"(encoder_layer_\d+\.mlp)\.linear_2\.": r"\1.3.",
}
"""Names in the files of torchvision -> those in its modules, which rename them when they load."""


def with_pretrained(model: Model, weights: StateDict, image_shape: ImageShape) -> tuple[Model, list[str]]:
    """The model with an `init` that gives these weights, for fine-tuning.

    They are fitted where that has a meaning: names of torchvision or timm become ours, without a wrapper such as
    `module.`; position embeddings are resampled for another grid, and the kernels of the first layer for another number
    of channels. Positions that are as many as the model's are taken to be of the same grid. A head that is missing or
    has another size stays as `init` draws it.

    Args:
        model: what to start.
        weights: of `params` and `model_state` together.
        image_shape: the images that the model is for.

    Returns:
        The model, and what was changed, one line for each thing.

    Raises:
        InputError: any other leaf is missing, left over or of another shape. The message lists the first eight.
    """
    fitted, notes = _fit_all(model, weights, image_shape)

    def init(generator: torch.Generator) -> tuple[Params, ModelState]:
        params, model_state = model.init(generator)
        for name, leaf in {**params, **model_state}.items():
            if name in fitted:
                leaf.copy_(fitted[name])
        return params, model_state

    return model._replace(init=init, init_from_images=None), notes


def _fit_all(model: Model, weights: StateDict, image_shape: ImageShape) -> tuple[StateDict, list[str]]:
    """The weights by our names and in our shapes, and what was changed."""
    leaves: StateDict = dict(chain(model.skeleton.named_parameters(), model.skeleton.named_buffers()))
    tied = model.skeleton.state_dict().keys() - leaves.keys()  # other names of these leaves
    optional = leaves.keys() - model.skeleton.state_dict().keys()  # buffers that a file of a state dict does not have
    optional |= {name for name in leaves if name.endswith("num_batches_tracked")}
    parts = {name: role.part for name, role in model.roles.items()}
    weights, notes = _renamed(weights, leaves)
    fitted, fresh, problems = {}, [], []
    for name, wanted in leaves.items():
        got, part = weights.pop(name, None), parts.get(name)
        if got is not None and got.shape != wanted.shape and part != "head":
            old, got = got, _fit(name, got, wanted, may_be_first=part != "trunk", image_shape=image_shape)
            if got.shape == wanted.shape:
                notes.append(f"{name} of {tuple(old.shape)} became {tuple(got.shape)}")
        elif got is not None and _is_positions(name, wanted) and _has_square_area(image_shape):
            notes.append(f"{name} is taken to be of the same grid of patches, though a square one has as many")
        if got is not None and got.shape == wanted.shape:
            fitted[name] = got.detach()
        elif part == "head":
            fresh.append(name)
        elif name not in optional:  # else it stays as the constructor makes it for these images
            found = "missing" if got is None else tuple(got.shape)
            problems.append(f"{name} is {found}, expected {tuple(wanted.shape)}")
    left_over = [name for name in weights if name not in tied and not name.endswith("num_batches_tracked")]
    if auxiliary := [name for name in left_over if name.startswith(AUXILIARY)]:
        notes.append(f"not used: {', '.join(auxiliary)}")
        left_over = [name for name in left_over if name not in auxiliary]
    if fresh:  # what was a part of another kind of head
        notes.append(f"missing or of another size, and initialised: {', '.join(fresh)}")
        top = fresh[0].partition(".")[0] + "."
        if any(name.startswith(top) and part != "head" for name, part in parts.items()):  # it holds more than the head
            top = owner_of(fresh[0])[0] + "."
        left_over = [name for name in left_over if not name.startswith(top)]
    problems += [f"{name} is {tuple(weights[name].shape)}, expected none" for name in left_over]
    if problems:
        raise InputError("\n  ".join(["these are not weights of this model:", *problems[:8]]))
    return fitted, notes


def _renamed(weights: StateDict, leaves: StateDict) -> tuple[StateDict, list[str]]:
    """The weights under the names of `leaves`, as far as these are known, and what was done for it."""
    notes = []
    weights = {name: leaf for name, leaf in weights.items() if name != "n_averaged"}  # of torch's AveragedModel
    while weights and not to_our_names(weights, leaves).keys() & leaves.keys():
        wrapper = next(iter(weights)).partition(".")[0] + "."
        if not all(name.startswith(wrapper) for name in weights):
            break
        weights = {name.removeprefix(wrapper): leaf for name, leaf in weights.items()}
        notes.append(f"{wrapper} before each name is dropped")
    for old, new in OLDER_NAMES.items():
        weights = {re.sub(old, new, name): leaf for name, leaf in weights.items()}
    renamed = to_our_names(weights, leaves)
    if renamed.keys() != weights.keys():
        notes.append("the names are those of torchvision or timm")
    return renamed, notes


def _fit(name: str, got: Tensor, wanted: Tensor, *, may_be_first: bool, image_shape: ImageShape) -> Tensor:
    """A leaf for another number of channels or another grid of positions; as it is if that is not the difference."""
    if got.ndim != wanted.ndim or got.ndim < 2 or got[:, 0].shape != wanted[:, 0].shape:
        return got
    if may_be_first and got.ndim == 4 and wanted.shape[1] == image_shape[0]:
        return fit_channels(got, wanted.shape[1])
    if _is_positions(name, wanted):
        return fit_positions(got, wanted.shape[1], image_shape)
    return got


def _is_positions(name: str, leaf: Tensor) -> bool:
    """Whether a leaf is position embeddings [1, N, D]: `pos_embed` here and in timm, `pos_embedding` in torchvision."""
    return leaf.ndim == 3 and "pos" in name


def _has_square_area(image_shape: ImageShape) -> bool:
    """Whether these images are not square, but have as many patches as a square image of the same area."""
    _, height, width = image_shape
    return height != width and math.isqrt(height * width) ** 2 == height * width


def fit_channels(kernels: Tensor, channels: int) -> Tensor:
    """Kernels [O, C, H, W] of a first convolution for another number of channels, as timm does it.

    For one channel they are summed over the channels. For more they are repeated in their order, and scaled so that
    equal channels give equal sums.
    """
    old = kernels.shape[1]
    if channels == 1:
        return kernels.sum(dim=1, keepdim=True)
    return kernels[:, torch.arange(channels) % old] * (old / channels)


def fit_positions(embeddings: Tensor, num_tokens: int, image_shape: ImageShape) -> Tensor:
    """Position embeddings [1, N, D] for another grid of patches, by bicubic interpolation with antialiasing, as timm.

    Tokens before the patches, such as a class token, keep theirs. Embeddings whose number of tokens fits no grid
    stay as they are.
    """
    height, width = image_shape[1:]
    for before in range(9):
        patches, old = num_tokens - before, embeddings.shape[1] - before
        if patches < 1 or old < 1 or height * width % patches:
            continue
        patch, side = math.isqrt(height * width // patches), math.isqrt(old)
        if patch**2 * patches != height * width or height % patch or width % patch or side**2 != old:
            continue
        grid = embeddings[:, before:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
        size = (height // patch, width // patch)
        grid = F.interpolate(grid, size=size, mode="bicubic", antialias=True, align_corners=False)
        return torch.cat([embeddings[:, :before], grid.flatten(2).transpose(1, 2).to(embeddings.dtype)], dim=1)
    return embeddings
