"""Models of other libraries, each tried on a batch before it is used."""

import os
import traceback
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from backbones.errors import InputError, is_out_of_memory
from backbones.models.base import ImageShape, InitModel, Model, NumClasses
from backbones.models.from_module import from_module
from backbones.models.pretrained import with_pretrained
from backbones.models.state_dict import read_state_dict
from backbones.types import ModelState, Params

MADE_WRONG = (RuntimeError, ValueError, AssertionError, TypeError, IndexError, AttributeError)
"""What modules raise for images that they are not made for."""


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
    except MADE_WRONG as error:
        raise _does_not_take(title, image_shape, error) from error
    check_logits(title, model, image_shape, num_classes)
    return model if pretrained is None else model._replace(init=_init_from_file(model, pretrained, image_shape))


def check_logits(title: str, model: Model, image_shape: ImageShape, num_classes: int) -> None:
    """Check that a model takes a batch of two such images in training, and gives their logits.

    Raises:
        InputError: it does not; the message calls it `title`.
    """
    channels, height, width = image_shape
    try:
        images = torch.empty(2, channels, height, width, device="meta")
        try:
            logits = _train(
                model, dict(model.skeleton.named_parameters()), dict(model.skeleton.named_buffers()), images
            )
        except Exception:  # it computes with numbers while it runs
            logits = _train(model, *model.init(torch.Generator()), torch.zeros_like(images, device="cpu"))
    except MADE_WRONG as error:
        raise _does_not_take(title, image_shape, error) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        got = f"{tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"{title} gives {got} for 2 images; wanted logits of shape {(2, num_classes)}")


def _does_not_take(title: str, image_shape: ImageShape, error: Exception) -> InputError:
    reason = str(error).partition("\n")[0]
    if is_out_of_memory(error):
        return InputError(f"{title} does not fit into the memory: {reason}")
    of_torch = os.path.dirname(torch.__file__)
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith(of_torch)]
    where = f"{frames[-1].filename}, line {frames[-1].lineno}"
    return InputError(f"{title} does not take images of {'x'.join(map(str, image_shape))}: {reason} ({where})")


def _init_from_file(model: Model, path: str, image_shape: ImageShape) -> InitModel:
    def init(generator: torch.Generator) -> tuple[Params, ModelState]:
        return with_pretrained(model, read_state_dict(path), image_shape)[0].init(generator)

    return init


def _train(model: Model, params: Params, model_state: ModelState, images: Tensor) -> object:
    with torch.no_grad():
        return model.apply(params, model_state, images, train=True)[0]
