"""timm's models by their names (Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models)."""

from functools import partial
from typing import Any

from backbones.errors import InputError, check_known
from backbones.models.base import ImageShape, Model, NumClasses
from backbones.models.library import from_library


def timm(
    image_shape: ImageShape, num_classes: NumClasses, *, architecture: str, pretrained: str | None = None
) -> Model:
    """Any classifier of timm.

    Args:
        image_shape: channels, height and width of an image.
        num_classes: number of classes K.
        architecture: its name, as `timm.list_models()` has it, such as resnet50d or vit_small_patch16_224.
        pretrained: file of weights of that architecture, fitted as those of --init-from; None for an initialisation at
            random.

    Raises:
        InputError: timm is not installed, has no such architecture, or cannot make it for these images; or, in `init`,
            the file cannot be read or holds other weights.
    """
    try:
        from timm.models import create_model, get_pretrained_cfg, is_model, list_models  # late: it takes a second
    except ImportError as error:
        raise InputError("--model timm takes timm, which is not installed: pip install timm") from error
    if not is_model(architecture.partition(".")[0]):
        check_known("architecture of timm", architecture, list_models())
    make = partial(create_model, architecture, **timm_arguments(architecture, image_shape, num_classes))
    config = get_pretrained_cfg(architecture, allow_unregistered=True)
    named = config.classifier if config is not None else None
    classifiers = named if isinstance(named, tuple | list) else ()  # as of distilled models, which have two
    return from_library(f"{architecture} of timm", make, image_shape, num_classes, pretrained, classifiers)


def timm_arguments(architecture: str, image_shape: ImageShape, num_classes: int) -> dict[str, Any]:
    """What `timm.create_model` is given beside the name of the architecture, which it must know.

    Raises:
        InputError: it does not know the tag after the name.
    """
    from timm.models import get_pretrained_cfg  # late: it takes a second

    channels, height, width = image_shape
    try:
        config = get_pretrained_cfg(architecture, allow_unregistered=True)
    except RuntimeError as error:  # the part after the dot
        raise InputError(f"timm has no weights {architecture}: {error}; leave out what is after the dot") from error
    size = {"img_size": (height, width)} if config is not None and config.fixed_input_size else {}
    return {"num_classes": num_classes, "in_chans": channels, **size}
