"""A model as one graph of torch.export that holds its weights and the normalization of images, and none of our code.

B images per batch, C channels, H and W height and width, K classes.
"""

import copy
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from backbones.models.base import ImageShape, Model, channels_last
from backbones.types import Weights


class Classifier(nn.Module):
    """images [B, C, H, W] uint8 -> logits [B, K] float32.

    Args:
        network: logits of normalized images.
        mean: [C], in [0, 255].
        std: [C], in [0, 255].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images.to(torch.float32) - self.mean) / self.std)


def make_module(model: Model, weights: Weights) -> nn.Module:
    """The network of a model in evaluation mode, with these weights. Parameters that are tied stay tied."""
    skeleton, leaves = model.skeleton, {name: channels_last(leaf) for part in weights for name, leaf in part.items()}
    copies: dict[int, Tensor] = {id(buffer): leaves[name] for name, buffer in skeleton.named_buffers()}
    copies |= {id(leaf): nn.Parameter(leaves[name], requires_grad=False) for name, leaf in skeleton.named_parameters()}
    return copy.deepcopy(skeleton, copies)


def make_program(
    model: Model,
    weights: Weights,
    *,
    image_shape: ImageShape,
    mean: Sequence[float],
    std: Sequence[float],
    fold: bool = False,
) -> ExportedProgram:
    """A `Classifier` as a graph for any number of images; its input is called `images`.

    Args:
        model: the network.
        weights: its leaves, on the CPU.
        image_shape: channels, height and width of an image.
        mean: [C], in [0, 255].
        std: [C], in [0, 255].
        fold: whether to fold each BatchNorm that alone follows a convolution into it.
    """
    program = _trace(Classifier(make_module(model, weights), mean, std), image_shape)
    return _trace(_fold_batch_norm(program), image_shape) if fold else program


def _trace(module: nn.Module, image_shape: ImageShape) -> ExportedProgram:
    images = torch.zeros(2, *image_shape, dtype=torch.uint8)
    trace = partial(torch.export.export, module, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    try:
        return trace()
    except torch._dynamo.exc.UserError:  # such as at `len(images)`, which is a number of its own only to strict tracing
        return trace(strict=True)


def _fold_batch_norm(program: ExportedProgram) -> nn.Module:
    module = program.module(check_guards=False)

    def value(node: Node | None) -> Any:
        return None if node is None else operator.attrgetter(str(node.target))(module)

    for norm in module.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default):
        conv, scale, shift, mean, variance, train, _, eps, _ = norm.args
        convs = torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding
        if conv.target not in convs or len(conv.users) > 1 or train:
            continue
        x, weight, bias, *options = conv.args if len(conv.args) > 2 else (*conv.args, None)
        if any(node is not None and node.op != "get_attr" for node in (weight, bias, mean, variance, scale, shift)):
            continue  # it is computed
        names = f"{conv.name}_weight", f"{conv.name}_bias"
        kernel, offset, mean, variance, scale, shift = map(value, (weight, bias, mean, variance, scale, shift))
        folded = fuse_conv_bn_weights(kernel, offset, mean, variance, eps, scale, shift)
        for name, leaf in zip(names, folded, strict=True):
            module.register_parameter(name, leaf)
        with module.graph.inserting_before(conv):
            conv.args = (x, *map(module.graph.get_attr, names), *options)
        norm.replace_all_uses_with(conv)
        module.graph.erase_node(norm)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module
