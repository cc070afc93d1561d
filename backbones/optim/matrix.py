"""Leaves as matrices [outputs, inputs], for transforms that use matrix products or decompositions."""

import math

from torch import Tensor


def as_matrix(leaf: Tensor) -> Tensor:
    """A leaf [R, ...] of two or more dimensions as a matrix [R, C]; a kernel's columns are (height, width, channel).

    This is the order of kernels in memory (`channels_last`), so nothing is copied.
    """
    return leaf.movedim(1, -1).flatten(1)


def from_matrix(matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of `as_matrix`: [R, C] in the shape of `like`."""
    rows, channels, *others = like.shape
    return matrix.reshape(rows, *others, channels).movedim(-1, 1)


def matrix_shape(leaf: Tensor) -> tuple[int, int]:
    """(R, C)."""
    return leaf.shape[0], math.prod(leaf.shape[1:])
