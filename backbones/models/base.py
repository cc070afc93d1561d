"""A model is two pure functions. This file is the only caller of `torch.func.functional_call`.

Shapes: B images a batch, C channels, H and W height and width, K classes.
"""

from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from backbones.errors import InputError
from backbones.types import ModelState, Params


class Model(NamedTuple):
    """A backbone with its classification head."""

    init: Callable[[torch.Generator], tuple[Params, ModelState]]
    """`init(generator) -> (params, model_state)` on the CPU, float32; equal generators give equal trees."""

    apply: Callable[..., tuple[Tensor, ModelState]]
    """`apply(params, model_state, images [B, C, H, W] float, *, train) -> (logits [B, K], model_state)`.

    Leaves its arguments as they are. With `train=True` BatchNorm uses and updates batch statistics and dropout draws
    from torch's generator; with `train=False` the `model_state` that comes out is the one that went in.
    """

    skeleton: nn.Module
    """The layers without their weights, on the meta device: for `print`, and for tools that look into modules."""


def make_model(
    make_module: Callable[[], nn.Module], init_module: Callable[[nn.Module, torch.Generator], None]
) -> Model:
    """Turn a module class into a `Model`.

    Args:
        make_module: makes the module; called under `torch.device("meta")`, so it costs no memory.
        init_module: `(submodule, generator)`; fills the parameters and buffers of a submodule that has any of its own.
    """

    def make_skeleton() -> nn.Module:
        with torch.device("meta"):
            return make_module()

    # Two skeletons without weights, one for each mode: nothing is toggled, so nothing is shared between calls.
    skeletons = {train: make_skeleton().train(train) for train in (True, False)}

    def init(generator: torch.Generator) -> tuple[Params, ModelState]:
        module = make_skeleton().to_empty(device="cpu")
        for submodule in module.modules():
            if any(True for _ in chain(submodule.parameters(recurse=False), submodule.buffers(recurse=False))):
                init_module(submodule, generator)
        params = {name: _channels_last(leaf.detach()) for name, leaf in module.named_parameters()}
        return params, dict(module.named_buffers())

    def apply(params: Params, model_state: ModelState, images: Tensor, *, train: bool) -> tuple[Tensor, ModelState]:
        if not train:
            return functional_call(skeletons[False], (params, model_state), (images,)), model_state
        # BatchNorm writes into its buffers: let it write into copies, and hand the copies out.
        model_state = {name: buffer.clone() for name, buffer in model_state.items()}
        logits = functional_call(skeletons[True], (params, model_state), (images,))
        return logits, model_state

    return Model(init, apply, skeletons[False])


def in_precision(model: Model, precision: torch.dtype) -> Model:
    """The model with its arithmetic in `precision`: `torch.float32` as it is, `torch.bfloat16` by autocast.

    Parameters stay float32; the logits come out in `precision`.
    """
    if precision == torch.float32:
        return model

    def apply(params: Params, model_state: ModelState, images: Tensor, *, train: bool) -> tuple[Tensor, ModelState]:
        with torch.autocast(images.device.type, precision):
            return model.apply(params, model_state, images, train=train)

    return model._replace(apply=apply)


def start_from(model: Model, weights: dict[str, Tensor]) -> tuple[Model, list[str]]:
    """The model with an `init` that gives these weights, for fine-tuning.

    Args:
        model: the backbone.
        weights: name -> tensor, of `params` and `model_state` together.

    Returns:
        The model, and the names of those leaves of its head that have another shape here and stay as `init` draws them.

    Raises:
        InputError: a leaf is missing or left over, or one that is not of the head has another shape; all are listed.
    """
    wanted = {name: tuple(leaf.shape) for name, leaf in model.skeleton.state_dict().items()}
    got = {name: tuple(leaf.shape) for name, leaf in weights.items()}
    others = [name for name in {**wanted, **got} if got.get(name) != wanted.get(name)]
    fresh = [name for name in others if name in wanted and name in got and name.startswith("head.")]
    problems = [f"{name} is {got.get(name, 'missing')}, expected {wanted.get(name, 'none')}" for name in others]
    if len(fresh) < len(others):
        raise InputError("\n  ".join(["these are not weights of this model:", *problems[:8]]))

    def init(generator: torch.Generator) -> tuple[Params, ModelState]:
        params, model_state = model.init(generator)
        for name, leaf in {**params, **model_state}.items():
            if name not in fresh:
                leaf.copy_(weights[name])
        return params, model_state

    return model._replace(init=init), fresh


def _channels_last(leaf: Tensor) -> Tensor:
    """Convolution kernels lie as [out, height, width, in]: several times faster on CPUs, and what GPUs want."""
    return leaf.contiguous(memory_format=torch.channels_last) if leaf.ndim == 4 else leaf
