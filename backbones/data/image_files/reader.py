"""Reads the image files of one split as a model wants them.

N files, B images of a batch, C channels, H and W height and width for the model, h and w those of a file.
"""

import errno
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import backbones.random as random
from backbones.data.image_files.decoded import Decoded
from backbones.data.image_files.images import BadImage, center_crop, decode, reason_of, resize
from backbones.data.image_files.listing import Files, printable
from backbones.data.source import Color
from backbones.errors import InputError

LARGE = 2**20
"""Bytes from which it is faster to share memory with another process than to send a copy."""

ABSENT = (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
"""Errors of a file that cannot be read, as opposed to those of a disk, a network or a process that fails."""

RATIO = (3 / 4, 4 / 3)
"""Least and largest width over height of a random crop (arXiv 1409.4842, section 6)."""


class Resizing(NamedTuple):
    """How images of any size become images of H x W."""

    height: int
    width: int
    center: float | None
    """Share of an image that its central crop takes; None where all have H x W already."""
    smallest: float | None
    """Least share of the area that a random crop takes; None for the central crop."""


class Reader(NamedTuple):
    """The image files of one split, and how they are read; small enough to be sent to worker processes."""

    files: Files
    channels: int
    background: Color
    decoded: Decoded | None = None
    """Where the decoded images are, if they are kept on disk."""
    resizing: Resizing | None = None

    def name(self, i: int) -> str:
        """What to call file `i` in a message."""
        return printable(self.files.path_of(i))

    def take(self, rows: np.ndarray) -> "Reader":
        """The reader of some of the files, by number [M] int64."""
        return self._replace(files=self.files.take(rows), decoded=self.decoded and self.decoded.take(rows))

    def read(self, index: Tensor, keys: Tensor) -> Tensor:
        """The `Read` of a source: [B, C, H, W] uint8.

        Raises:
            InputError: a file cannot be read, or is of another size than the others and not scaled.
        """
        return torch.stack(self._images(index, keys))

    def read_elsewhere(self, index: np.ndarray, keys: np.ndarray) -> np.ndarray | Tensor:
        """What `read` returns, to be sent to another process: an array as a copy, a tensor in shared memory."""
        images = self._images(torch.from_numpy(index), torch.from_numpy(keys))
        size = len(images) * images[0].numel()
        if size < LARGE:
            return torch.stack(images).numpy()
        try:
            storage = torch.UntypedStorage._new_shared(size)  # as torch's default_collate
        except RuntimeError:  # /dev/shm is full
            return torch.stack(images).numpy()
        shared = images[0].new_empty(0).set_(storage)
        return torch.stack(images, out=shared.view(len(images), *images[0].shape))

    def load(self, i: int) -> Tensor:
        """File `i`, [C, h, w] uint8.

        Raises:
            InputError: it cannot be read.
        """
        if self.decoded is not None:
            return self.decoded.image(i)
        found = self._decode_or_reason(i)
        if isinstance(found, str):
            raise InputError(unreadable(f"{self.name(i)}: {found}"))
        return found

    def decode_some(self, index: list[int]) -> tuple[list[np.ndarray], dict[int, str]]:
        """Some files, each [C, h, w] uint8 or empty; and number -> reason of those that cannot be read."""
        found = {i: self._decode_or_reason(i) for i in index}
        empty = np.empty((0, 0, 0), dtype=np.uint8)
        images = [empty if isinstance(each, str) else each.contiguous().numpy() for each in found.values()]
        return images, {i: each for i, each in found.items() if isinstance(each, str)}

    def find_bad(self, index: list[int]) -> dict[int, str]:
        """Number -> reason of those of some files that cannot be read."""
        return {i: reason for i in index if isinstance(reason := self._decode_or_reason(i), str)}

    def _decode_or_reason(self, i: int) -> Tensor | str:
        """File `i`, [C, h, w] uint8, or why it cannot be read; InputError where another time it may be."""
        try:
            return decode(self.files.content(i), channels=self.channels, background=self.background)
        except (OSError, BadImage) as error:
            if isinstance(error, OSError) and error.errno not in ABSENT:
                raise InputError(f"cannot read {self.name(i)}: {reason_of(error)}; run it again") from error
            return reason_of(error)

    def _images(self, index: Tensor, keys: Tensor) -> list[Tensor]:
        return [self._resized(i, key) for i, key in zip(index.tolist(), keys.unbind(), strict=True)]

    def _resized(self, i: int, key: Tensor) -> Tensor:
        assert self.resizing is not None
        image, (height, width, center, smallest) = self.load(i), self.resizing
        if smallest is not None:
            box = random.rectangle(key, image.shape[1], image.shape[2], (smallest, 1.0), RATIO)
            top, left, rows, columns = (int(each) for each in box)
            return resize(image[:, top : top + rows, left : left + columns], height, width)
        if center is not None:
            return center_crop(image, height, width, center)
        if image.shape[1:] != (height, width):
            raise InputError(
                f"{self.name(i)} has {image.shape[2]}x{image.shape[1]} pixels, and the first image {width}x{height}; "
                f"give all of them one size by --data.image-size {max(height, width)}"
            )
        return image


def unreadable(file: str) -> str:
    """The message about a file that cannot be read, of which `file` is the name and the reason."""
    return f"cannot read {file}; remove it, or train without such files by --data.on-error skip"
