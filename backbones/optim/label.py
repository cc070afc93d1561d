"""Which leaves are what: functions of a leaf's name and itself, for masks and partitions."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

FIRST_AND_LAST_LAYERS = ("stem.", "patch_embed.", "whiten.", "features.0.", "head.")
"""Layers that touch pixels or classes, by how the names of their leaves begin."""


def everything(name: str, leaf: Tensor) -> bool:
    """True."""
    del name, leaf
    return True


def is_matrix(name: str, leaf: Tensor) -> bool:
    """Whether a leaf is the weight of a linear layer or a convolution; biases, norms and embeddings are not."""
    return leaf.ndim >= 2 and name.endswith("weight")


def is_hidden_matrix(name: str, leaf: Tensor) -> bool:
    """Whether a leaf is a matrix of a layer that touches neither pixels nor classes."""
    return is_matrix(name, leaf) and not name.startswith(FIRST_AND_LAST_LAYERS)


DecayMask = Literal["all", "matrices"]
"""What weight decay is for: every leaf, or the weights of linear layers and convolutions alone."""

DECAY_MASKS: dict[DecayMask, Callable[[str, Tensor], bool]] = {"all": everything, "matrices": is_matrix}
