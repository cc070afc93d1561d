"""The role of each parameter: the part of the network from its name, the kind from the layer that owns it."""

from torch import Tensor, nn

from backbones.types import Kind, Part, Role, Roles

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
LOOKUP_TABLES = (nn.Embedding, nn.EmbeddingBag)


def make_roles(module: nn.Module, *, stem: tuple[str, ...], head: tuple[str, ...]) -> Roles:
    """The role of each trainable parameter of a module, whose stem and head are named by their dotted names."""
    return {
        name: Role(_part(name, stem, head), _kind(module.get_submodule(name.rpartition(".")[0]), name, leaf))
        for name, leaf in module.named_parameters()
        if leaf.requires_grad
    }


def _part(name: str, stem: tuple[str, ...], head: tuple[str, ...]) -> Part:
    if any(f"{name}.".startswith(f"{owner}.") for owner in head):
        return "head"
    return "stem" if any(f"{name}.".startswith(f"{owner}.") for owner in stem) else "trunk"


def _kind(layer: nn.Module, name: str, leaf: Tensor) -> Kind:
    if isinstance(layer, NORMS):
        return "norm"
    if name.endswith("bias"):
        return "bias"
    if leaf.ndim < 2:
        return "scale"
    return "matrix" if name.endswith("weight") and not isinstance(layer, LOOKUP_TABLES) else "embedding"
