"""What a data set is: two sources of samples with random access, and what a model must know of them to predict.

N samples, B samples of a batch, C channels, H and W height and width, K classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

import backbones.tree as tree
from backbones.errors import InputError

CPU = torch.device("cpu")


class DataInfo(NamedTuple):
    """What a trained model needs to predict without its training data; stored in every checkpoint."""

    image_shape: tuple[int, int, int]
    """C, H, W."""
    class_names: tuple[str, ...]
    """K names."""
    mean: tuple[float, ...]
    """[C], of the training images, in [0, 255]."""
    std: tuple[float, ...]
    """[C], of the training images, in [0, 255]."""

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DataInfo":
        """Undo `_asdict`, also after a round trip through text."""
        return cls(**{name: tuple(value) for name, value in values.items()})


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
    """`digest()` is a SHA-256 of all samples: equal for equal data."""

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
        InputError: a split is empty, has images and labels of different number, or a label that is no class.
    """
    for split, (images, labels) in (("training", train), ("test", test)):
        if len(images) != len(labels) or len(images) == 0:
            raise InputError(f"the {split} split has {len(images)} images and {len(labels)} labels; wanted one each")
        wrong = labels[(labels < 0) | (labels >= len(class_names))]
        if len(wrong):
            raise InputError(
                f"{len(wrong)} of the {len(labels)} {split} labels are outside 0 to {len(class_names) - 1}: "
                f"{', '.join(str(label) for label in wrong.unique().tolist()[:8])}"
            )
    mean, std = channel_statistics(train[0])
    channels, height, width = train[0].shape[1:]
    info = DataInfo((channels, height, width), class_names, mean, std)

    def source(images: Tensor, labels: Tensor) -> Source:
        images, labels = images.to(device), labels.to(device)

        def read(index: Tensor, keys: Tensor) -> Tensor:
            del keys
            return images[index]

        return Source(info, labels, read, lambda: tree.sha256({"images": images, "labels": labels}))

    return Dataset(source(*train), source(*test))


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images [N, C, H, W] uint8 over all pixels, in [0, 255]."""
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])
    values = torch.arange(256, dtype=torch.float64)  # exact, and without a float copy of every pixel
    frequencies = counts.to(torch.float64) / counts.sum(dim=1, keepdim=True)  # [C, 256]
    mean = frequencies @ values
    variance = (frequencies * (values - mean[:, None]) ** 2).sum(dim=1)
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())
