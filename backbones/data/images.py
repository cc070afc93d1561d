"""Image files as tensors. The only importer of Pillow."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from backbones.errors import InputError


def read_images(paths: Sequence[Path], image_shape: tuple[int, int, int], *, resize: bool) -> Tensor:
    """Image files as the model wants them, [N, C, H, W] uint8.

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
            image = Image.open(path).convert("L" if channels == 1 else "RGB")
        except (UnidentifiedImageError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no image, or truncated"
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
