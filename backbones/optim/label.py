"""Masks: functions of a leaf's name and the leaf itself, which select leaves for a transform."""

import re
from collections.abc import Callable

from torch import Tensor

from backbones.types import Roles

Mask = Callable[[str, Tensor], bool]
"""`mask(name, leaf)`: whether the leaf is selected."""


def everything(name: str, leaf: Tensor) -> bool:
    """True."""
    return True


def is_matrix(name: str, leaf: Tensor) -> bool:
    """Whether a leaf is a weight of two or more dimensions: that of a linear layer, a convolution or an `nn.Embedding`.

    By the roles of a model `matrices` tells these apart. What torch's `parametrize` or its older hooks make a weight
    of counts too, but for the lengths of `weight_norm`.
    """
    _, parametrized, rest = f".{name}".partition(".parametrizations.")
    tensor = re.sub("_(orig|v)$", "", rest.partition(".")[0] if parametrized else name)
    return leaf.ndim >= 2 and tensor.endswith("weight") and (not parametrized or leaf[0].numel() > 1)


def matrices(roles: Roles) -> Mask:
    """The weights of linear layers and convolutions, by the roles that a model declares."""
    return lambda name, leaf: roles[name].kind == "matrix"


def hidden_matrices(roles: Roles) -> Mask:
    """The `matrices` of neither stem nor head."""
    return lambda name, leaf: roles[name].kind == "matrix" and roles[name].part == "trunk"
