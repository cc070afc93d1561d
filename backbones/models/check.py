"""Whether a model can be trained on some images: tried on the meta device, where nothing is computed."""

import os
import traceback

import torch
from torch import Tensor, nn

from backbones.errors import InputError, first_line, is_out_of_memory
from backbones.models.base import ImageShape, Model
from backbones.types import ModelState, Params

FORWARD_ERRORS = (RuntimeError, ValueError, AssertionError, TypeError, IndexError, AttributeError)
"""What modules raise for images that they are not made for."""


def check_logits(title: str, model: Model, image_shape: ImageShape, num_classes: int) -> None:
    """Check that a model takes a batch of two such images in training, and gives their logits.

    Raises:
        InputError: it does not; the message calls it `title`.
    """
    channels, height, width = image_shape
    try:
        images = torch.empty(2, channels, height, width, device="meta")
        try:
            logits = _train_on_meta(model, images)
        except Exception:  # it computes with numbers while it runs
            logits = _train(model, *model.init(torch.Generator()), torch.zeros_like(images, device="cpu"))
    except InputError as error:
        raise InputError(f"{title}: {error}") from error
    except FORWARD_ERRORS as error:
        raise does_not_take(title, image_shape, error) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        got = f"{tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"{title} gives {got} for 2 images; wanted logits of shape {(2, num_classes)}")


def check_batch_norm(title: str, model: Model, image_shape: ImageShape) -> None:
    """Check that a batch of one image leaves no BatchNorm of a model one value per channel.

    Raises:
        InputError: it does; the message calls the batch `title`.
    """
    if not any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in model.skeleton.modules()):
        return
    try:
        _train_on_meta(model, torch.empty(1, *image_shape, device="meta"))
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise InputError(
                f"BatchNorm gets one value per channel and cannot compute a variance from it: {title} is one image for "
                "each process and micro-batch; raise --batch-size"
            ) from error
    except RuntimeError:  # a module that cannot run there
        pass


def does_not_take(title: str, image_shape: ImageShape, error: Exception) -> InputError:
    """The error for images that a model, which is called `title`, cannot take."""
    reason = first_line(error)
    if is_out_of_memory(error):
        return InputError(f"{title} does not fit into the memory: {reason}")
    of_torch = os.path.dirname(torch.__file__)
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith(of_torch)]
    where = f"{frames[-1].filename}, line {frames[-1].lineno}"
    return InputError(f"{title} does not take images of {'x'.join(map(str, image_shape))}: {reason} ({where})")


def _train_on_meta(model: Model, images: Tensor) -> object:
    params: Params = dict(model.skeleton.named_parameters())
    return _train(model, params, dict(model.skeleton.named_buffers()), images)


def _train(model: Model, params: Params, model_state: ModelState, images: Tensor) -> object:
    leaves = {**params, **model_state}
    fixed = [name for name, leaf in model.skeleton.named_parameters() if not leaf.requires_grad]
    versions = {name: leaves[name]._version for name in fixed}
    with torch.no_grad():
        logits = model.apply(params, model_state, images, train=True)[0]
    if written := [name for name in fixed if leaves[name]._version != versions[name]]:
        raise InputError(
            f"{type(model.skeleton).__name__} writes into its parameter {written[0]} when it is called; make it a "
            "buffer (`register_buffer`), of which it gets a copy"
        )
    return logits
