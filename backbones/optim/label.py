"""Masks: functions of a leaf's name and the leaf itself, which select leaves for a transform."""

import re
from collections.abc import Callable

from torch import Tensor

from backbones.types import Role, Roles

Mask = Callable[[str, Tensor], bool]
"""`mask(name, leaf)`: whether the leaf is selected."""


def everything(name: str, leaf: Tensor) -> bool:
    """Select every leaf."""
    return True


def is_matrix(name: str, leaf: Tensor) -> bool:
    """Whether a leaf is a weight of two or more dimensions: that of a linear layer, a convolution or an `nn.Embedding`.

    `matrices`, which goes by the roles of a model, leaves the last out. What torch's `parametrize` or its older hooks
    compute a weight from counts too, except the magnitudes of `weight_norm`.
    """
    _, parametrized, rest = f".{name}".partition(".parametrizations.")
    tensor = re.sub("_(orig|v)$", "", rest.partition(".")[0] if parametrized else name)
    return leaf.ndim >= 2 and tensor.endswith("weight") and (not parametrized or leaf[0].numel() > 1)


def matrices(roles: Roles) -> Mask:
    """The weights of linear layers and convolutions, by the roles that a model declares."""
    return lambda name, leaf: roles[name].kind == "matrix"


def is_hidden(role: Role) -> bool:
    """Whether a parameter is one of the `matrices`, of neither stem nor head."""
    return role.kind == "matrix" and role.part == "trunk"


def hidden_matrices(roles: Roles) -> Mask:
    """The leaves that are `is_hidden` by the roles that a model declares."""
    return lambda name, leaf: is_hidden(roles[name])
