"""The last step of every optimizer."""

import torch

import backbones.tree as tree
from backbones.types import Params, Updates


def apply_updates(params: Params, updates: Updates) -> Params:
    """p + update, leaf by leaf; the updates of a chain already point downhill."""
    return tree.map(torch.add, params, updates)
