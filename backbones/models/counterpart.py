"""Which models timm or torchvision has as well as we have, and how to make them there."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from backbones.errors import InputError
from backbones.models.base import ImageShape
from backbones.models.timm import timm_arguments
from backbones.models.torchvision import torchvision_arguments

Library = Literal["timm", "torchvision"]
Options = Mapping[str, Any]


class Counterpart(NamedTuple):
    """A model of another library."""

    architecture: str
    """Its name there."""
    wanted: Options = {}  # noqa: RUF012
    """Options that ours must have to be the same network."""
    arguments: Callable[[Options, ImageShape], dict[str, Any]] = lambda options, image_shape: {}
    """(our options, image shape) -> keyword arguments of their constructor, except numbers of classes and channels."""


def _vit_arguments(options: Options, image_shape: ImageShape) -> dict[str, Any]:
    shape = {
        "img_size": image_shape[1:],
        "patch_size": options["patch_size"],
        "embed_dim": options["width"],
        "depth": options["depth"],
        "num_heads": options["heads"],
        "mlp_ratio": _ratio(options["mlp_width"], options["width"]),
    }
    pool = {"class_token": False, "global_pool": "avg", "fc_norm": False} if options["pool"] == "mean" else {}
    return shape | pool


def _mixer_arguments(options: Options, image_shape: ImageShape) -> dict[str, Any]:
    ratios = tuple(_ratio(options[f"{kind}_mlp_width"], options["width"]) for kind in ("token", "channel"))
    return {"img_size": image_shape[1:], "mlp_ratio": ratios}


def _ratio(hidden: int, width: int) -> float:
    """The mlp_ratio from which timm, by int(width * ratio), gets this hidden dimension."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


IMAGENET = {"stem": "imagenet"}
PLAIN_MIXER = {"patch_size": 16, "width": 512, "depth": 8}
PLAIN_VIT = {"patch_embed": "linear", "registers": 0}
RESNETS = {
    **{f"resnet{depth}": Counterpart(f"resnet{depth}", IMAGENET) for depth in (18, 34, 50, 101, 152)},
    **{f"resnext{kind}": Counterpart(f"resnext{kind.replace('-', '_')}", {**IMAGENET, "downsample": "3x3"})
       for kind in ("50-32x4d", "101-32x8d", "101-64x4d")},
}  # fmt: skip

COUNTERPARTS: dict[Library, dict[str, Counterpart]] = {
    "timm": {
        **RESNETS,
        **{f"se-resnet{depth}": Counterpart(f"seresnet{depth}", {**IMAGENET, "reduction": 16})
           for depth in (50, 101, 152)},
        **{f"convnext-{size}": Counterpart(f"convnext_{size}", IMAGENET) for size in ("atto", "tiny")},
        **{f"vit-{size}": Counterpart(f"vit_{size}_patch16_224", PLAIN_VIT, _vit_arguments)
           for size in ("tiny", "small", "base", "large")},
        "vit-huge": Counterpart("vit_huge_patch14_224", PLAIN_VIT, _vit_arguments),
        "mixer-small": Counterpart("mixer_s16_224", PLAIN_MIXER, _mixer_arguments),
    },
    "torchvision": {
        **RESNETS,
        **{f"vgg{depth}{norm}": Counterpart(f"vgg{depth}{norm.replace('-', '_')}", {"head": "mlp"})
           for depth in (11, 13, 16, 19) for norm in ("", "-bn")},
        "mobilenet-v2": Counterpart("mobilenet_v2", IMAGENET),
    },
}  # fmt: skip
"""Library -> our model -> theirs; of all of them `convert.py` knows the names of the weights."""


def find_counterpart(
    library: Library, name: str, options: Options, image_shape: ImageShape, num_classes: int
) -> tuple[str, dict[str, Any]]:
    """The architecture that one of our models is in another library, and the arguments that make it.

    Args:
        library: the other one.
        name: one of `MODELS`.
        options: the value of each of its options.
        image_shape: channels, height and width of an image.
        num_classes: number of classes K.

    Raises:
        InputError: the library has no such model.
    """
    found = COUNTERPARTS[library].get(name)
    if found is None:
        raise InputError(
            f"{library} is not known to have {name}; of our models it has {', '.join(COUNTERPARTS[library])}"
        )
    for option, wanted in found.wanted.items():
        if options[option] != wanted:
            raise InputError(
                f"{library}'s {found.architecture} is our {name} with {option}={wanted!r}; "
                f"this model has {option}={options[option]!r}"
            )
    if library == "torchvision":
        _check_channels(found.architecture, image_shape)
    if name.startswith("vgg") and any(side % 32 for side in image_shape[1:]):
        raise InputError(
            f"ours and {library}'s {found.architecture} pool images of {image_shape[1]}x{image_shape[2]} in different "
            "ways; they are the same for multiples of 32 pixels"
        )
    channels = {"in_chans": image_shape[0]} if library == "timm" else {}
    return found.architecture, {"num_classes": num_classes, **channels, **found.arguments(options, image_shape)}


def arguments_of_theirs(
    library: Library, architecture: str, image_shape: ImageShape, num_classes: int
) -> dict[str, Any]:
    """The arguments that make a model of another library again.

    Raises:
        InputError: torchvision makes none for images that have not three channels.
    """
    if library == "timm":
        return timm_arguments(architecture, image_shape, num_classes)
    _check_channels(architecture, image_shape)
    return torchvision_arguments(architecture, image_shape, num_classes)


def _check_channels(architecture: str, image_shape: ImageShape) -> None:
    if image_shape[0] != 3:
        raise InputError(f"torchvision's {architecture} takes images of 3 channels, and these have {image_shape[0]}")
