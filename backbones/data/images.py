"""Image files as tensors. The only importer of Pillow."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from backbones.errors import InputError


def read_images(paths: Sequence[Path], image_shape: tuple[int, int, int], *, resize: bool) -> Tensor:
    """Image files as the model wants them, [N, C, H, W] uint8.

    They are turned as their EXIF orientation says, 16 bits are scaled to 8, and what is transparent is black.

    Args:
        paths: files of any format that Pillow knows.
        image_shape: C (1 or 3: grey, or red, green and blue), H and W.
        resize: scale images of another size to H x W, instead of refusing them.

    Raises:
        InputError: a file is absent, no image, or of another size.
    """
    channels, height, width = image_shape
    images = []
    for path in paths:
        try:
            with Image.open(path) as file:
                image = _to_8_bits(ImageOps.exif_transpose(file)).convert("L" if channels == 1 else "RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of them
            reason = getattr(error, "strerror", None) or "it is no image, or damaged"
            raise InputError(f"{path} cannot be read: {reason}") from error
        if image.size != (width, height):
            if not resize:
                got = "x".join(str(size) for size in image.size)
                raise InputError(
                    f"{path} has {got} pixels and the model takes {width}x{height}; scale it with --resize"
                )
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        images.append(torch.from_numpy(np.array(image)).reshape(height, width, channels).permute(2, 0, 1))
    return torch.stack(images)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """An opaque image of at most 8 bits a channel."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.float32) * (255 / 65535)).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
