"""TrainState <-> numpy arrays by path: orbax knows numpy, not torch."""

import hashlib
from typing import NamedTuple

import ml_dtypes  # what jax takes bfloat16 from
import numpy as np
import torch
from torch import Tensor

import backbones.tree as tree
from backbones.errors import InputError
from backbones.train_step import TrainState

Arrays = dict[str, np.ndarray]
"""Path of a leaf, such as `params/head.weight` or `opt_state/1/mu/head.weight` -> its values."""


class Leaf(NamedTuple):
    """What is known of a leaf without its values."""

    dtype: str
    shape: list[int]
    sha256: str
    """Hex digest of its bytes in C order, little-endian."""


def to_arrays(state: TrainState) -> Arrays:
    """Path -> a copy of the leaf on the host, of the same dtype (bfloat16 through ml_dtypes)."""
    return {name: _to_array(leaf) for name, leaf in tree.named_leaves(state).items()}


def _to_array(leaf: Tensor) -> np.ndarray:
    leaf = leaf.detach().to("cpu", copy=True).contiguous()
    if leaf.dtype == torch.bfloat16:
        return leaf.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return leaf.numpy()


def to_tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor of the same dtype, in the same memory."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def describe(array: np.ndarray) -> Leaf:
    """Dtype, shape and hash of an array."""
    digest = hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return Leaf(array.dtype.name, list(array.shape), digest.hexdigest())


def fill(like: TrainState, arrays: Arrays) -> TrainState:
    """Fill the memory of `like` from `arrays`, which must have its paths, shapes and dtypes, and return it.

    Raises:
        InputError: they differ; the message lists where, and `like` is as it was.
    """
    leaves = tree.named_leaves(like)
    tensors = {name: to_tensor(array) for name, array in arrays.items()}
    differences = []
    for name, leaf in leaves.items():
        got, wanted = _signature(tensors.get(name)), _signature(leaf)
        if got != wanted:
            differences.append(f"{name} is {got}, expected {wanted}")
    differences += [f"{name} is not expected" for name in tensors if name not in leaves]
    if differences:
        more = [f"and {len(differences) - 8} more"] if len(differences) > 8 else []
        raise InputError("\n  ".join(["the checkpoint is of another model or optimizer:", *differences[:8], *more]))
    for name, leaf in leaves.items():
        leaf.copy_(tensors[name])
    return like


def _signature(leaf: Tensor | None) -> str:
    return "missing" if leaf is None else f"{leaf.dtype} {list(leaf.shape)}".removeprefix("torch.")
