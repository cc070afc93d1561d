"""The last step of every optimizer."""

import torch

import backbones.tree as tree
from backbones.optim.base import GradientTransformation
from backbones.types import OptState, Params, Updates

BLOCK_SIZE = 2**20
"""Elements of `params` that an eager step takes at a time: so few that they are still in the cache when the next
transform of the chain reads them, and so many that the rates of a block cost nothing beside its leaves."""


def apply_updates(params: Params, updates: Updates) -> Params:
    """p + update, leaf by leaf; the updates of a chain already point downhill."""
    return tree.map(torch.add, params, updates)


def step(
    optimizer: GradientTransformation, grads: Updates, opt_state: OptState, params: Params
) -> tuple[Params, Updates, OptState]:
    """`optimizer.update`, then `apply_updates`: (params, updates, opt_state).

    An eager step takes a leafwise optimizer through a few leaves at a time, from gradient to parameter, and not the
    whole tree through one transform after the other: the results are the same to the last bit, and memory is read and
    written half as often. A compiled step gets the whole: the compiler fuses it itself.
    """
    if not optimizer.leafwise or torch.compiler.is_compiling():
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return apply_updates(params, updates), updates, opt_state
    blocks = []
    for names in _blocks(params):
        block_params, block_grads, block_state = (tree.part(whole, names) for whole in (params, grads, opt_state))
        updates, block_state = optimizer.update(block_grads, block_state, block_params)
        blocks.append((apply_updates(block_params, updates), updates, block_state))
    return tree.join(blocks)


def _blocks(params: Params) -> list[list[str]]:
    """The names of `params` in runs of `BLOCK_SIZE` elements or a little more."""
    blocks, size = [[]], 0
    for name, leaf in params.items():
        if size >= BLOCK_SIZE:
            blocks.append([])
            size = 0
        blocks[-1].append(name)
        size += leaf.numel()
    return blocks
