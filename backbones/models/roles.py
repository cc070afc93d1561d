"""The role of each parameter: the part of the network from its name, the kind from the layer that owns it."""

import re

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from backbones.types import Kind, Part, Role, Roles

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
LOOKUP_TABLES = (nn.Embedding, nn.EmbeddingBag)
POOLS = (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)


def make_roles(module: nn.Module, *, stem: tuple[str, ...], head: tuple[str, ...]) -> Roles:
    """The role of each trainable parameter of a module, whose stem and head are named by their dotted names."""
    leaves = {name: leaf for name, leaf in module.named_parameters() if leaf.requires_grad}
    parts = {name: _part(name, stem, head) for name in leaves}
    blocks = {name: _block(module, name) if parts[name] == "trunk" else None for name in leaves}
    order = list(dict.fromkeys(block for block in blocks.values() if block))
    roles, blocks_begun = {}, not order
    for name, leaf in leaves.items():
        part, block = parts[name], blocks[name]
        if block is not None:
            depth, blocks_begun = order.index(block) + 1, True
        else:
            depth = len(order) + 1 if part == "head" or (part == "trunk" and blocks_begun) else 0
        owner, tensor = owner_of(name)
        roles[name] = Role(part, _kind(module.get_submodule(owner), tensor, leaf), depth)
    return roles


def owner_of(name: str) -> tuple[str, str]:
    """Names of the layer that a parameter belongs to and of the tensor in it, also under torch's `parametrize`."""
    owner, _, parametrized = name.partition(".parametrizations.")
    if parametrized:
        return owner, parametrized.partition(".")[0]
    owner, _, tensor = name.rpartition(".")
    return owner, tensor


def _block(module: nn.Module, name: str) -> str | None:
    """Name of the block of a parameter: the outermost element of a Sequential or ModuleList that holds it.

    Where elements are single layers, those between two pools are one block, as in a VGG, called as its first one; where
    there are no pools, a layer and the norm after it.
    """
    keys = name.split(".")
    for i, key in enumerate(keys[:-1]):
        if isinstance(module, nn.Sequential | nn.ModuleList):
            return ".".join([*keys[:i], _first_of_block(module, key)])
        module = module.get_submodule(key)
    return None


def _first_of_block(container: nn.Module, key: str) -> str:
    elements = dict(container.named_children())
    keys = list(elements)
    by_pools = any(isinstance(each, POOLS) for each in elements.values())

    def begins(i: int) -> bool:
        before, each = elements[keys[i - 1]], elements[keys[i]]
        if i == 0 or any(True for _ in each.children()) or any(True for _ in before.children()):
            return True
        return isinstance(before, POOLS) if by_pools else not isinstance(each, NORMS)

    return next(keys[i] for i in range(keys.index(key), -1, -1) if begins(i))


def _part(name: str, stem: tuple[str, ...], head: tuple[str, ...]) -> Part:
    if any(f"{name}.".startswith(f"{owner}.") for owner in head):
        return "head"
    return "stem" if any(f"{name}.".startswith(f"{owner}.") for owner in stem) else "trunk"


def _kind(layer: nn.Module, tensor: str, leaf: Tensor) -> Kind:
    if isinstance(layer, NORMS):
        return "norm"
    if tensor.endswith("bias"):
        return "bias"
    is_magnitude = (is_parametrized(layer) or tensor.endswith("_g")) and leaf.ndim and leaf[0].numel() == 1
    if leaf.ndim < 2 or is_magnitude:  # of `weight_norm`
        return "scale"
    tensor = re.sub("_(orig|v)$", "", tensor)  # as torch's older hooks call what they compute a weight from
    return "matrix" if tensor.endswith("weight") and not isinstance(layer, LOOKUP_TABLES) else "embedding"
