"""What a data set is: two sources of samples with random access, and what a model must know of them to predict.

N samples, B samples of a batch, C channels, H and W height and width, K classes.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

import backbones.distributed as distributed
import backbones.tree as tree
from backbones.errors import InputError, shorten
from backbones.types import CPU

Color = tuple[int, int, int]
"""Red, green and blue in [0, 255]."""


class DataInfo(NamedTuple):
    """What a trained model needs to predict without its training data; stored in every checkpoint."""

    image_shape: tuple[int, int, int]
    """C, H, W."""
    class_names: tuple[str, ...]
    """K names."""
    mean: tuple[float, ...]
    """[C], of the training images, in [0, 255]."""
    std: tuple[float, ...]
    """[C], of the training images, in [0, 255]; 1 for a channel that is constant."""
    background: Color = (0, 0, 0)
    """What shows where an image file is transparent."""
    center: float | None = None
    """Share in (0, 1] of an image file that its central crop takes; None where files have H x W and are not scaled."""

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DataInfo":
        """Undo `_asdict`, also after a round trip through text."""
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**plain)


class Read(Protocol):
    """Random access: the images [B, C, H, W] uint8 of the samples `index` [B] int64 in [0, N).

    `keys` [B] int64 is a random key for each sample, for sources that draw something while they read.
    """

    def __call__(self, index: Tensor, keys: Tensor) -> Tensor: ...


class Source(NamedTuple):
    """Samples of one split."""

    info: DataInfo
    labels: Tensor
    """[N] int64 in [0, K)."""
    read: Read
    digest: Callable[[], str]
    """`digest()` is a SHA-256 of all samples, or of the names of their files: equal for equal data."""
    start: Callable[[Tensor, Tensor], Callable[[], Tensor]] | None = None
    """`start(index, keys)` begins to read in other processes; the function that it returns waits for the images. None
    where reading takes no time."""
    bad_files: tuple[str, ...] = ()
    """Files that are left out, each with the reason."""
    file_name: Callable[[int], str] | None = None
    """The file of sample `i`; None where samples are not files."""

    @property
    def size(self) -> int:
        """N."""
        return len(self.labels)


class Dataset(NamedTuple):
    """A data set: what is trained on, and what is held out."""

    train: Source
    test: Source

    @property
    def info(self) -> DataInfo:
        """That of both splits."""
        return self.train.info


def in_memory(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], class_names: tuple[str, ...], device: torch.device
) -> Dataset:
    """A data set of tensors, all of it on `device`.

    Each split is images [N, C, H, W] uint8 and labels [N] int64 in [0, K).

    Raises:
        InputError: as `check_labels`; or these are no tensors, images and labels are of different number, the splits of
            another shape, or the channels last.
    """
    for split, (images, labels) in (("training", train), ("test", test)):
        if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
            got = f"{type(images).__name__} and {type(labels).__name__}"
            raise InputError(f"the {split} split is {got}; wanted tensors: torch.as_tensor(...) of each")
        if len(images) != len(labels):
            raise InputError(f"the {split} split has {len(images)} images and {len(labels)} labels; wanted one each")
        if images.dim() != 4 or images.dtype != torch.uint8 or images.shape[1:] != train[0].shape[1:]:
            raise InputError(
                f"the {split} images are {images.dtype} {tuple(images.shape)}; wanted torch.uint8 [N, C, H, W], with "
                "one C, H and W in both splits"
            )
        if images.shape[3] in (1, 3, 4) and min(images.shape[1:3]) > 4:
            raise InputError(
                f"the {split} images {tuple(images.shape)} look like [N, H, W, C], and [N, C, H, W] is wanted; use "
                "images.permute(0, 3, 1, 2)"
            )
    check_labels(train[1], test[1], class_names)
    note_odd_classes(train[1], test[1], class_names)
    mean, std = channel_statistics(train[0])
    channels, height, width = train[0].shape[1:]
    info = DataInfo((channels, height, width), class_names, mean, std)

    def source(images: Tensor, labels: Tensor) -> Source:
        images, labels = images.to(device), labels.to(device)
        digest = partial(tree.sha256, {"images": images, "labels": labels})
        return Source(info, labels, lambda index, keys: images[index], digest)

    return Dataset(source(*train), source(*test))


def check_labels(train: Tensor, test: Tensor, class_names: Sequence[str]) -> None:
    """Check the labels [N] int64 of both splits.

    Raises:
        InputError: they are no such tensors, a split is empty, or has a label that is not a class.
    """
    for split, labels in (("training", train), ("test", test)):
        if labels.dim() != 1 or labels.dtype != torch.int64:
            raise InputError(f"the {split} labels are {labels.dtype} {tuple(labels.shape)}; wanted torch.int64 [N]")
        if len(labels) == 0:
            raise InputError(f"the {split} split has no images; wanted one at least")
        wrong = labels[(labels < 0) | (labels >= len(class_names))]
        if len(wrong):
            raise InputError(
                f"{len(wrong)} of the {len(labels)} {split} labels are outside 0 to {len(class_names) - 1}: "
                f"{', '.join(str(label) for label in wrong.unique().tolist()[:8])}"
            )


def check_splits(dataset: Dataset) -> None:
    """Check that both splits have images of one shape and the same classes, and labels of these.

    Raises:
        InputError: they differ, or as `check_labels`.
    """
    train, test = (source.info for source in dataset)
    if train.image_shape != test.image_shape:
        raise InputError(
            f"the training images are {train.image_shape}, and the test images {test.image_shape}; wanted one C, H and "
            "W in both splits"
        )
    for k, (ours, theirs) in enumerate(zip_longest(train.class_names, test.class_names)):
        if ours != theirs:
            raise InputError(
                f"class {k} is {ours} in the training split and {theirs} in the test split; wanted the same class "
                "names, in the same order, in both"
            )
    check_labels(dataset.train.labels, dataset.test.labels, train.class_names)


def check_statistics(source: Source) -> None:
    """Check the mean and the standard deviation of the channels in the information of a source.

    Raises:
        InputError: they are not one number for each channel, not positive, or those of pixels in [0, 1].
    """
    channels, mean, std = source.info.image_shape[0], source.info.mean, source.info.std
    is_number = [math.isfinite(value) for value in (*mean, *std)]
    if not len(mean) == len(std) == channels or not all(is_number) or min(std) <= 0:
        raise InputError(
            f"the data set has mean {mean} and std {std}; wanted {channels} numbers each, with std above 0"
        )
    if max(*mean, *std) >= 1:
        return
    images = read_some(source.read, source.size, 100, source.labels.device)
    if images.to(torch.float32).std() > 10 * max(std):
        raise InputError(f"the data set has mean {mean} and std {std}; wanted those of pixels in [0, 255]: times 255")


def note_odd_classes(train: Tensor, test: Tensor, class_names: Sequence[str]) -> None:
    """Print a note where there is one class only, or none of the images of a split is of some class."""
    counts = [torch.bincount(labels, minlength=len(class_names)) for labels in (train, test)]
    if len(class_names) == 1:
        distributed.print0(f"note: there is one class only: {class_names[0]}")
    for what, classes in (("training images", counts[0] == 0), ("test images", (counts[1] == 0) & (counts[0] > 0))):
        names = [class_names[k] for k in classes.nonzero()[:, 0].tolist()]
        if names:
            distributed.print0(f"note: no {what} in {len(names)} of {len(class_names)} classes: {shorten(names)}")


def read_some(read: Read, size: int, most: int, device: torch.device = CPU) -> Tensor:
    """At most `most` of `size` images, at equal distances, [N, C, H, W] uint8; `device` is where the labels lie."""
    index = torch.linspace(0, size - 1, min(most, size), device=device).long().clamp(max=size - 1)  # float32 rounds
    return read(index, torch.zeros_like(index))


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images [N, C, H, W] uint8 over all pixels, in [0, 255].

    A constant channel has the standard deviation 1, so that it can be divided by; that is printed as a note.
    """
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).cpu()
    values = torch.arange(256, dtype=torch.float64)  # exact, and without a float copy of every pixel
    frequencies = counts.to(torch.float64) / counts.sum(dim=1, keepdim=True)  # [C, 256]
    mean = frequencies @ values
    std = (frequencies * (values - mean[:, None]) ** 2).sum(dim=1).sqrt()
    constant = (std == 0).nonzero()[:, 0].tolist()
    if constant:
        distributed.print0(
            f"note: all pixels of the training images are equal in channel {', '.join(map(str, constant))}"
        )
    return tuple(mean.tolist()), tuple(torch.where(std == 0, 1.0, std).tolist())
