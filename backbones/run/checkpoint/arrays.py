"""TrainState <-> numpy arrays by path: orbax stores numpy arrays, not torch tensors."""

import hashlib
from typing import NamedTuple

import ml_dtypes  # defines bfloat16 for numpy, as in jax
import numpy as np
import torch
from torch import Tensor

import backbones.tree as tree
from backbones.errors import InputError
from backbones.train_step import TrainState
from backbones.types import Weights

Arrays = dict[str, np.ndarray]
"""Path of a leaf, such as `params/head.weight` or `opt_state/1/mu/head.weight` -> its values."""


class Leaf(NamedTuple):
    """A leaf without its values."""

    dtype: str
    shape: list[int]
    sha256: str
    """Hex digest of its bytes in C order, little-endian."""


EVALUATED = "evaluated"
"""Where a checkpoint holds the weights that are evaluated, if they are not those of the state."""


def to_arrays(state: TrainState, weights: Weights | None = None) -> Arrays:
    """Path -> a copy of the leaf in host memory, of the same dtype (bfloat16 is that of ml_dtypes).

    `weights` are the ones that are evaluated; None if they are those of the state.
    """
    leaves = tree.named_leaves(state)
    if weights is not None:
        leaves |= tree.named_leaves({EVALUATED: weights})
    return {name: _to_array(leaf) for name, leaf in leaves.items()}


def _to_array(leaf: Tensor) -> np.ndarray:
    leaf = leaf.detach().to("cpu", copy=True).contiguous()
    if leaf.dtype == torch.bfloat16:
        return leaf.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return leaf.numpy()


def to_tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor of the same dtype, sharing its memory."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def subtree(arrays: Arrays, path: str) -> dict[str, Tensor]:
    """Name -> tensor of the leaves under a path, such as `params`."""
    return {
        name.removeprefix(f"{path}/"): to_tensor(array) for name, array in arrays.items() if name.startswith(f"{path}/")
    }


def saved_weights(arrays: Arrays) -> Weights:
    """The weights that are evaluated: the average if the run keeps one, and the model state that belongs to it."""
    average = subtree(arrays, f"{EVALUATED}/0")
    if average:
        return average, subtree(arrays, f"{EVALUATED}/1")
    return subtree(arrays, "params"), subtree(arrays, "model_state")


def without_average(arrays: Arrays) -> Arrays:
    """The arrays of the state alone."""
    return {name: array for name, array in arrays.items() if not name.startswith(f"{EVALUATED}/")}


def describe_leaf(array: np.ndarray) -> Leaf:
    """Dtype, shape and hash of an array."""
    digest = hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return Leaf(array.dtype.name, list(array.shape), digest.hexdigest())


def load_arrays(like: TrainState, arrays: Arrays) -> TrainState:
    """Copy `arrays`, which must have the paths, shapes and dtypes of `like`, into its memory, and return it.

    Raises:
        InputError: they differ; the message lists where, and `like` is unchanged.
    """
    leaves = tree.named_leaves(like)
    tensors = {name: to_tensor(array) for name, array in without_average(arrays).items()}
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
