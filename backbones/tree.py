"""Trees of tensors: nested dicts, tuples and NamedTuples with tensors as leaves. The only importer of optree."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

Tree = Any


def map(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply `function` leaf by leaf to trees of one structure; the result has that structure."""
    return optree.tree_map(function, tree, *rest)


def map_to_several(function: Callable[..., tuple], tree: Tree, *rest: Tree) -> tuple[Tree, ...]:
    """`map` for a function of several results: one tree for each of them."""
    leaves, structure = optree.tree_flatten(tree)
    results = [
        function(*leaf) for leaf in zip(leaves, *(structure.flatten_up_to(other) for other in rest), strict=True)
    ]
    return tuple(structure.unflatten(result) for result in zip(*results, strict=True))


def where(condition: Tensor, yes: Tree, no: Tree) -> Tree:
    """`yes` if the 0-D bool `condition` is true, else `no`, without waiting for the device to know."""
    return map(lambda a, b: torch.where(condition, a, b), yes, no)


def stack(trees: Sequence[Tree]) -> Tree:
    """Trees of one structure as one: each leaf gets a new first dimension, as long as `trees`."""
    return map(lambda *leaves: torch.stack(leaves), *trees)


def unstack(tree: Tree) -> list[Tree]:
    """Undo `stack`. The leaves share the memory of those of `tree`."""
    return [unflatten(tree, each) for each in zip(*(leaf.unbind() for leaf in leaves(tree)), strict=True)]


def leaves(tree: Tree) -> list[Tensor]:
    """The leaves, in the tree's own fixed order (dicts by sorted key)."""
    return optree.tree_leaves(tree)


def unflatten(like: Tree, leaves: Sequence[Any]) -> Tree:
    """Undo `leaves`: the structure of `like` with other leaves."""
    return optree.tree_unflatten(optree.tree_structure(like), leaves)


def named_leaves(tree: Tree) -> dict[str, Tensor]:
    """The leaves by path, such as `opt_state/1/mu/head.weight`; the order is that of `leaves`."""
    accessors, leaves, _ = optree.tree_flatten_with_accessor(tree)
    return {"/".join(_entry_name(entry) for entry in path): leaf for path, leaf in zip(accessors, leaves, strict=True)}


def _entry_name(entry: optree.PyTreeEntry) -> str:
    return entry.field if isinstance(entry, optree.NamedTupleEntry) else str(entry.entry)


def find(tree: Tree, matches: Callable[[Any], bool]) -> list[Any]:
    """The nodes for which `matches(node)` is true, in the order of `leaves`; none inside another."""
    return [node for node in optree.tree_leaves(tree, is_leaf=matches) if matches(node)]


def replace_fields(tree: Tree, fields: dict[str, Tensor]) -> Tree:
    """The tree with those leaves set that are fields of NamedTuples, or keys of dicts of only 0-D tensors.

    Other dicts have the names of parameters as keys, and a parameter may be called like a field.
    """
    if tree is None or isinstance(tree, Tensor):
        return tree
    if isinstance(tree, dict):
        own = fields if all(isinstance(child, Tensor) and child.ndim == 0 for child in tree.values()) else {}
        return {key: own.get(key, replace_fields(child, fields)) for key, child in tree.items()}
    if not hasattr(tree, "_fields"):
        return type(tree)(replace_fields(child, fields) for child in tree)
    children = {name: replace_fields(child, fields) for name, child in tree._asdict().items()}
    return type(tree)(
        **{name: fields.get(name, child) if isinstance(child, Tensor) else child for name, child in children.items()}
    )


def zeros_like(tree: Tree) -> Tree:
    """A tree of zeros with the shapes, dtypes, devices and memory formats of `tree`."""
    return map(torch.zeros_like, tree)


def with_own_memory(tree: Tree) -> Tree:
    """The tree with a copy of each leaf that shares its memory with an earlier one, or is a part of a larger tensor.

    Leaves can then be written over one by one.
    """
    seen: set[int] = set()

    def separate(leaf: Tensor) -> Tensor:
        is_part = leaf.untyped_storage().nbytes() != leaf.numel() * leaf.element_size()
        leaf = leaf.clone() if is_part or storage(leaf) in seen else leaf
        seen.add(storage(leaf))
        return leaf

    return map(separate, tree)


def storage(leaf: Tensor) -> int:
    """The identity of a leaf's memory: equal for a tensor and its views."""
    return leaf.untyped_storage()._cdata


def size(tree: Tree) -> int:
    """Number of elements over all leaves."""
    return sum(leaf.numel() for leaf in leaves(tree))


def global_norm(tree: Tree) -> Tensor:
    """Euclidean norm of all leaves taken as one vector, 0-D."""
    # Not torch._foreach_norm: torch 2.14 has no rule for its vmap, and its forward-mode derivative has the wrong shape.
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(leaf) for leaf in leaves(tree)]))


def sha256(tree: Tree) -> str:
    """Hex digest over every leaf's name, dtype, shape and bytes: equal if and only if the trees are, bit for bit."""
    digest = hashlib.sha256()
    for name, leaf in named_leaves(tree).items():
        digest.update(f"{name} {leaf.dtype} {tuple(leaf.shape)}\n".encode())
        digest.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
