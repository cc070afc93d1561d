"""Gradients to test optimizers with: those of real models on real images."""

from collections import OrderedDict
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

import backbones.random as random
import backbones.tree as tree
from backbones import optim
from backbones.data import digits, make_batches
from backbones.models import MODELS, Model, from_module
from backbones.types import Params

NUM_STEPS = 30


class Descent(NamedTuple):
    """Initial parameters of a training, and the gradient of each step; float64."""

    params: Params
    grads: list[Params]


class Small(nn.Sequential):
    """Few leaves, whose updates are compiled fast."""

    def __init__(self) -> None:
        channels = (8, 64, 8, 8)
        blocks = [nn.Conv2d(*sizes, 3, padding=1) for sizes in pairwise(channels)]
        layers = {"stem": nn.Conv2d(3, 8, 3, stride=4), "blocks": nn.Sequential(*blocks), "tanh": nn.Tanh()}
        super().__init__(OrderedDict(layers, flat=nn.Flatten(), head=nn.Linear(8 * 4 * 4, 10)))


def make_model(name: str) -> Model:
    if name == "vit":
        return MODELS["vit-tiny"]((3, 16, 16), 10, patch_size=8, width=32, depth=1, heads=2, mlp_width=64)
    return from_module(Small)


def record(name: str) -> Descent:
    """Train a model for 30 steps with AdamW, in float64."""
    model, source, cpu = make_model(name), digits().train, torch.device("cpu")
    mean, std = (torch.tensor(each).double()[:, None, None] for each in (source.info.mean, source.info.std))
    batches = make_batches(source, seed=0, batch_size=16, device=cpu)
    first, model_state = tree.map(torch.Tensor.double, model.init(random.generator(0)))
    optimizer = optim.adamw(lr=3e-3)
    params, opt_state, grads = first, optimizer.init(first), []
    for step in range(NUM_STEPS):
        batch = batches(step)
        images = (batch.images - mean) / std

        def loss_fn(params: Params, images=images, labels=batch.labels) -> torch.Tensor:
            logits, _ = model.apply(params, model_state, images, train=True)
            return torch.nn.functional.cross_entropy(logits, labels)

        grads.append(torch.func.grad(loss_fn)(params))
        updates, opt_state = optimizer.update(grads[-1], opt_state, params)
        params = optim.apply_updates(params, updates)
    return Descent(first, grads)
