"""Any `nn.Module` as a model, such as those of torchvision, of timm and of one's own files."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import is_parametrized

from backbones.errors import InputError
from backbones.models.base import Features, Model, make_apply, split_leaves, with_leaves
from backbones.models.roles import make_roles, owner_of
from backbones.types import ModelState, Params


def from_module(make: Callable[[], nn.Module], classifiers: Sequence[str] = ()) -> Model:
    """Turn a module that gives logits [B, K] of images [B, C, H, W] into a `Model`.

    Its own constructor initialises it, on the CPU, from torch's global generator, which is seeded for it and then put
    back. Buffers are as the constructor makes them, persistent or not; parameters that it freezes (`requires_grad` is
    False) are leaves of `model_state`.

    A module does not say what its stem and its head are. By the order of `named_modules()`, the stem is the first
    linear layer or convolution, and the head is the last layer with parameters, if that is a linear layer or a 1x1
    convolution. `features` gives the outputs of its own submodules by their names, such as layer1 or blocks.3, down
    to the elements of a container. `pooled` is what comes out of the module with its head replaced by
    the identity, which is what enters the head where nothing follows it. It raises InputError if there is no such head.

    Args:
        make: the constructor, such as `partial(MyNet, width=64)`. It is called once here and once in each `init`.
        classifiers: names of the layers that are the head, where there are several.

    Raises:
        InputError: it is no module, a layer gets its shape only from a first batch (`nn.LazyLinear`), or a parameter is
            complex.
    """

    def make_on_cpu(seed: int) -> nn.Module:
        # no_grad: what a module computes of its parameters, as torch's first weight_norm does, can then be copied
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
            return make()

    made = make_on_cpu(0)
    if not isinstance(made, nn.Module):
        raise InputError(f"a {type(made).__name__} is no model; wanted an nn.Module")
    skeleton = _on_meta(made).eval()
    stem, head = find_stem_and_head(skeleton)
    head = tuple(classifiers) or head

    def init(generator: torch.Generator) -> tuple[Params, ModelState]:
        seed = torch.randint(2**63 - 1, (), generator=generator)
        return split_leaves(make_on_cpu(int(seed)))

    roles = make_roles(skeleton, stem=stem, head=head)
    return Model(init, make_apply(skeleton), _make_features(skeleton, head), skeleton, roles)


def _make_features(skeleton: nn.Module, head: tuple[str, ...]) -> Features:
    """What hooks on a copy of `skeleton` without its head give of its layers, and its output as `pooled`."""
    headless = copy.deepcopy(skeleton)
    for name in head:
        headless.set_submodule(name, nn.Identity())
    outputs: dict[str, Tensor] = {}
    image_size = torch.Size()

    def keep(name: str, layer: nn.Module, args: object, output: object) -> Tensor | None:
        del layer, args
        if not isinstance(output, Tensor):
            return None
        is_last = _has_channels_last(output, image_size)
        outputs[name] = output.permute(0, 3, 1, 2) if is_last else output
        # The next layer gets a copy, over which it may write; it comes from what is kept, so that this has a gradient.
        return (outputs[name].permute(0, 2, 3, 1) if is_last else outputs[name]).clone()

    for name, layer in _layers(headless):
        if name not in head:
            layer.register_forward_hook(partial(keep, name))

    def features(params: Params, model_state: ModelState, images: Tensor) -> dict[str, Tensor]:
        if not head:
            raise InputError(f"{type(skeleton).__name__} has no features: its last layer is not linear")
        nonlocal image_size
        image_size = images.shape[2:]
        try:
            leaves = {**params, **model_state}
            own = {name: leaf for name, leaf in leaves.items() if owner_of(name)[0] not in head}
            pooled = functional_call(headless, own, (images,))
            return {**outputs, "pooled": pooled}
        except (AttributeError, TypeError) as error:  # such as a weight of the head that `forward` reads
            raise InputError(
                f"{type(skeleton).__name__} has no features: without its last layer it cannot be called: {error}"
            ) from error
        finally:
            outputs.clear()  # else they would stay in memory

    return features


def _on_meta(module: nn.Module) -> nn.Module:
    """A copy without weights."""
    for name, leaf in module.named_parameters():
        if nn.parameter.is_lazy(leaf):
            raise InputError(f"{name} of {type(module).__name__} has no shape yet; give its layer the number of inputs")
        if leaf.is_complex():
            raise InputError(
                f"{name} of {type(module).__name__} is complex, and optimizers take real numbers: keep it as "
                "torch.view_as_real, and use torch.view_as_complex in forward"
            )
    return with_leaves(module, lambda leaf: leaf.to("meta"))


def find_stem_and_head(module: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the first linear layer or convolution, and of the last layer if it can be a classifier."""
    layers = [
        (name, layer)
        for name, layer in module.named_modules()
        if name and ".parametrizations" not in f".{name}"
        if is_parametrized(layer) or next(layer.parameters(recurse=False), None) is not None
    ]
    stem = [name for name, layer in layers if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)][:1]
    head = [
        name
        for name, layer in layers[-1:]
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
    ]
    return tuple(stem), tuple(head)


def _layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The submodules by name, down to the elements of a container: these are the blocks of a network."""
    for name, child in module.named_children():
        yield prefix + name, child
        if not isinstance(module, nn.Sequential | nn.ModuleList):
            yield from _layers(child, f"{prefix}{name}.")


def _has_channels_last(x: Tensor, image_size: torch.Size) -> bool:
    """Whether a map is [B, H, W, C]: its height and width are nearer to the proportion of the images as such."""
    if x.ndim != 4:
        return False
    proportion = image_size[0] / image_size[1]
    last, first = (abs(math.log(rows / columns / proportion)) for rows, columns in (x.shape[1:3], x.shape[2:4]))
    return last < first
