"""Models of other libraries, each tried on a batch before it is used."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from backbones.models.base import ImageShape, Model, NumClasses
from backbones.models.check import FORWARD_ERRORS, check_logits, does_not_take
from backbones.models.from_module import from_module
from backbones.models.pretrained import with_pretrained
from backbones.models.state_dict import read_state_dict
from backbones.types import ModelState, Params


def from_library(
    title: str,
    make: Callable[[], nn.Module],
    image_shape: ImageShape,
    num_classes: NumClasses,
    pretrained: str | None,
    classifiers: Sequence[str] = (),
) -> Model:
    """`from_module` for a module of another library, which is first tried on a batch of meta tensors.

    Args:
        title: what it is called in messages.
        make: its constructor.
        image_shape: the images that it is for.
        num_classes: the classes.
        pretrained: file of weights with which `init` starts; it is read only then, so that a trained run does without.
        classifiers: see `from_module`.

    Raises:
        InputError: it cannot be made, does not fit into the memory, cannot take a batch of such images in training, or
            gives something else than logits; the message has its own words. `init` raises as `read_state_dict` and
            `with_pretrained` do.
    """
    try:
        model = from_module(make, classifiers)
    except FORWARD_ERRORS as error:
        raise does_not_take(title, image_shape, error) from error
    check_logits(title, model, image_shape, num_classes)
    if pretrained is None:
        return model

    def init(generator: torch.Generator) -> tuple[Params, ModelState]:
        return with_pretrained(model, read_state_dict(pretrained), image_shape)[0].init(generator)

    return model._replace(init=init)
