"""What a model is: pure functions over its parameters, made from a module of torch.

Shapes: B images per batch, C channels, H and W height and width, D dimensions of the pooled vector, K classes.
"""

import copy
import functools
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from typing import Annotated, ClassVar, Literal, NamedTuple, ParamSpec, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import Doc

from backbones.errors import InputError
from backbones.models.roles import make_roles, owner_of
from backbones.ranges import Count, checked
from backbones.types import ModelState, Params, Roles

P = ParamSpec("P")

ImageShape = Annotated[tuple[int, int, int], Doc("channels, height and width of an image")]
NumClasses = Annotated[int, Doc("number of classes K")]
StageDepths = Annotated[Sequence[int], Doc("number of blocks in each stage")]
Stem = Annotated[
    Literal["cifar", "imagenet"], Doc("first layers; cifar keeps the size of the image, imagenet quarters it")
]
PatchSize = Annotated[Count, Doc("side of a patch in pixels; divides the height and the width of the image")]

InitModel = Callable[[torch.Generator], tuple[Params, ModelState]]
"""New trees on the CPU. Equal generators give equal trees; torch's global generator is not used."""

InitFromImages = Callable[[Params, ModelState, Tensor], tuple[Params, ModelState]]
"""(params, model_state, images) -> the same trees, with those leaves set that depend on training images.

The images are [N, C, H, W] float32, normalized as for `apply`.
"""


class ApplyModel(Protocol):
    """Logits [B, K] of images [B, C, H, W], and the next model state. The arguments stay as they are.

    With `train=True` BatchNorm uses and updates batch statistics, and dropout draws from torch's generator; with
    `train=False` the `model_state` that comes out is the one that went in.
    """

    def __call__(
        self, params: Params, model_state: ModelState, images: Tensor, *, train: bool
    ) -> tuple[Tensor, ModelState]: ...


class Features(Protocol):
    """Named maps of images [B, C, H, W], in the order in which they are computed, in evaluation mode.

    The last is `pooled` [B, D], the vector that enters the head. Before it come `stem`, and `stage1`, `stage2`, ...
    [B, C, H, W], or `block1`, ... where a network has no stages: [B, N, D] if it is one of tokens.
    """

    def __call__(self, params: Params, model_state: ModelState, images: Tensor) -> dict[str, Tensor]: ...


class Model(NamedTuple):
    """A backbone with its classification head.

    params, model_state = model.init(generator)
    logits, model_state = model.apply(params, model_state, images, train=True)
    pooled = model.features(params, model_state, images)["pooled"]
    """

    init: InitModel
    apply: ApplyModel
    features: Features
    skeleton: nn.Module
    """The layers without their weights, on the meta device: for `print`, and for tools that look into modules."""
    roles: Roles
    init_from_images: InitFromImages | None = None
    """What else there is to initialise once training images are at hand; `init_train_state` calls it after `init`."""


class Backbone(nn.Module):
    """images -> stem -> stages (or blocks) -> pool -> head: what all networks of this package are.

    A subclass makes these submodules. Where its network differs it overrides `embed`, `pool` or `forward_features`. A
    ReLU writes over its input, the fresh output of a norm or of a sum: a third less memory, and less to wait for.
    """

    STEM: ClassVar[tuple[str, ...]] = ("stem",)
    """Names of the submodules and parameters that come before the first stage or block."""

    LAYERS: ClassVar[Literal["stages", "blocks"]] = "stages"
    """Name of the submodule between stem and pool; its children are the named features."""

    head: nn.Module
    """From the pooled vector to the logits."""

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to the input of the first stage or block."""
        return self.get_submodule("stem")(images)

    def pool(self, x: Tensor) -> Tensor:
        """The output of the last stage or block to the pooled vector [B, D]."""
        return x.mean(dim=(2, 3))

    def forward_features(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, map) in order, and at the end ("pooled", [B, D]).

        It is a generator so that `forward`, which wants the last alone, holds no map longer than the next layer does.
        """
        x = self.embed(images)
        yield "stem", x
        for i, layer in enumerate(self.get_submodule(self.LAYERS).children(), start=1):
            x = layer(x)
            yield f"{self.LAYERS.removesuffix('s')}{i}", x
        yield "pooled", self.pool(x)

    def forward(self, images: Tensor, *, features: bool = False) -> Tensor | dict[str, Tensor]:
        """Logits [B, K], or the features by name."""
        if features:
            return dict(self.forward_features(images))
        for _, x in self.forward_features(images):
            pooled = x  # the last one is; earlier maps are freed
        return self.head(pooled)


def make_constructor(
    network: Callable[P, Backbone],
    init_module: Callable[[nn.Module, torch.Generator], None],
    init_from_images: InitFromImages | None = None,
) -> Callable[P, Model]:
    """The function that takes the arguments of a `Backbone` class and returns a `Model`, with float32 parameters.

    It checks numbers against the ranges of their annotations, and makes the network on the meta device, which costs no
    memory.

    Args:
        network: the class.
        init_module: `(submodule, generator)`; initialises a submodule that has parameters or buffers of its own.
        init_from_images: what training images decide, if anything.
    """

    @checked
    @functools.wraps(network, updated=())
    def construct(*args: P.args, **kwargs: P.kwargs) -> Model:
        with torch.device("meta"):
            skeleton = network(*args, **kwargs).eval()

        def init(generator: torch.Generator) -> tuple[Params, ModelState]:
            module = with_memory(skeleton)
            for submodule in module.modules():
                if any(True for _ in chain(submodule.parameters(recurse=False), submodule.buffers(recurse=False))):
                    init_module(submodule, generator)
            return split_leaves(module)

        def features(params: Params, model_state: ModelState, images: Tensor) -> dict[str, Tensor]:
            return functional_call(skeleton, (params, model_state), (images,), {"features": True})

        roles = make_roles(skeleton, stem=skeleton.STEM, head=("head",))
        return Model(init, make_apply(skeleton), features, skeleton, roles, init_from_images)

    return construct


def with_memory(skeleton: nn.Module) -> nn.Module:
    """A copy of a module on the meta device, with leaves on the CPU that are not initialised."""
    # `to_empty` would import sympy, half a second: by `empty_like` of a meta tensor
    return with_leaves(skeleton, lambda leaf: torch.empty(leaf.shape, dtype=leaf.dtype, device="cpu"))


def with_leaves(module: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of a module with other leaves. Parameters that are tied stay tied, as they do not in `module.to`."""
    copies: dict[int, Tensor] = {id(buffer): convert(buffer) for buffer in module.buffers()}
    copies |= {id(leaf): nn.Parameter(convert(leaf), leaf.requires_grad) for leaf in module.parameters()}
    return copy.deepcopy(module, copies)


def split_leaves(module: nn.Module) -> tuple[Params, ModelState]:
    """The trees of a module: its trainable parameters, and its buffers together with its frozen parameters."""
    params: Params = {}
    model_state: ModelState = dict(module.named_buffers())
    for name, leaf in module.named_parameters():
        (params if leaf.requires_grad else model_state)[name] = channels_last(leaf.detach())
    return params, model_state


def channels_last(leaf: Tensor) -> Tensor:
    """Convolution kernels in memory as [out, height, width, in]: several times faster on CPUs, and best for GPUs."""
    return leaf.contiguous(memory_format=torch.channels_last) if leaf.ndim == 4 else leaf


def make_apply(skeleton: nn.Module, *, in_evaluation: Collection[str] = ()) -> ApplyModel:
    """The forward pass of a module in evaluation mode, on the meta device, as a function of its leaves.

    Args:
        skeleton: the module.
        in_evaluation: names of submodules that stay in evaluation mode with `train=True`.
    """
    # One skeleton for each mode: nothing is toggled, so nothing is shared between calls.
    training_skeleton = copy.deepcopy(skeleton).train()
    for name in in_evaluation:
        training_skeleton.get_submodule(name).eval()
    owners = {name: training_skeleton.get_submodule(name.rpartition(".")[0]) for name, _ in skeleton.named_buffers()}
    in_training = {name for name, owner in owners.items() if owner.training}
    # BatchNorm writes its statistics in training alone; of other layers this is not known
    in_both = {name for name, owner in owners.items() if not isinstance(owner, nn.modules.batchnorm._NormBase)}

    def apply(params: Params, model_state: ModelState, images: Tensor, *, train: bool) -> tuple[Tensor, ModelState]:
        # Layers write into their buffers, or replace them: let them do so to copies, and return those of training.
        network, written = (training_skeleton, in_training) if train else (skeleton, in_both)
        leaves = params | {name: leaf.clone() if name in written else leaf for name, leaf in model_state.items()}
        logits = functional_call(network, leaves, (images,))
        return logits, {name: leaves[name] for name in model_state} if train else model_state

    _OF_MODULES.add(apply)
    return apply


_OF_MODULES: weakref.WeakSet[ApplyModel] = weakref.WeakSet()


def is_of_module(apply: ApplyModel) -> bool:
    """Whether `make_apply` made it, so that it does no more than the module itself."""
    return apply in _OF_MODULES


def apply_head(model: Model, params: Params, model_state: ModelState, pooled: Tensor) -> Tensor:
    """Logits [B, K] of the vectors [B, D] that `model.features` calls `pooled`.

    Raises:
        InputError: it is a module of another library, and its head is not known.
    """
    owners = {owner_of(name)[0] for name, role in model.roles.items() if role.part == "head"}
    name = "head" if isinstance(model.skeleton, Backbone) else next(iter(owners), None)
    head = model.skeleton.get_submodule(name or "")
    if name is None or isinstance(head, nn.Conv2d):
        raise InputError(f"the last layer of {type(model.skeleton).__name__} is not linear, so its head is not known")
    start, leaves = f"{name}.", {**params, **model_state}
    own = {each.removeprefix(start): leaf for each, leaf in leaves.items() if each.startswith(start)}
    return functional_call(head, own, (pooled,))


def with_autocast(model: Model, precision: torch.dtype) -> Model:
    """The model with its arithmetic in `precision`: `torch.float32` as it is, `torch.bfloat16` by autocast.

    Parameters stay float32; the logits come out in `precision`, the features as autocast computes them.
    """
    if precision == torch.float32:
        return model

    def apply(params: Params, model_state: ModelState, images: Tensor, *, train: bool) -> tuple[Tensor, ModelState]:
        with torch.autocast(images.device.type, precision):
            return model.apply(params, model_state, images, train=train)

    def features(params: Params, model_state: ModelState, images: Tensor) -> dict[str, Tensor]:
        with torch.autocast(images.device.type, precision):
            return model.features(params, model_state, images)

    return model._replace(apply=apply, features=features)
