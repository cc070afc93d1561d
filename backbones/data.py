"""Data sets as tensors, and which samples make which batch: a pure function of (seed, step), for any number of ranks.

The only importer of torchvision. N samples, C channels, H and W height and width, K classes.
"""

import gzip
import math
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.datasets
from torch import Tensor

import backbones.distributed as distributed
import backbones.random as random
from backbones.augment import random_crop, random_flip
from backbones.types import Batch, InputError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


class Split(NamedTuple):
    """One part of a data set."""

    images: Tensor
    """[N, C, H, W] uint8."""
    labels: Tensor
    """[N] int64 in [0, K)."""


class Dataset(NamedTuple):
    """A data set, held in memory as a whole."""

    train: Split
    test: Split
    class_names: tuple[str, ...]
    """K names."""
    augment: Callable[[Tensor, Tensor], Tensor]
    """`(keys [B] int64, images [B, C, H, W]) -> images`, for training."""

    def to(self, device: torch.device) -> "Dataset":
        """The same data set on another device."""
        train, test = (Split(*(leaf.to(device) for leaf in split)) for split in (self.train, self.test))
        return self._replace(train=train, test=test)


def channel_statistics(split: Split) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over all pixels of a split, [C] float32 each, in [0, 255]."""
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in split.images.cpu().unbind(1)])
    values = torch.arange(256, dtype=torch.float64)  # exact, and without a float copy of every pixel
    weights = counts.to(torch.float64) / counts.sum(dim=1, keepdim=True)  # [C, 256]
    mean = weights @ values
    variance = (weights * (values - mean[:, None]) ** 2).sum(dim=1)
    return mean.to(split.images.device, torch.float32), variance.sqrt().to(split.images.device, torch.float32)


def train_batch(split: Split, *, seed: int, step: int, batch_size: int) -> Batch:
    """This rank's part of the batch of a step.

    The samples of a run are one endless row: epoch after epoch, each in an order of its own. Step `s` takes the
    `batch_size` of them from `s batch_size` on, and each rank its share of these, so nothing is dropped or seen twice.

    Args:
        split: the training split.
        seed: seed of the run.
        step: steps done so far.
        batch_size: samples over all ranks; a multiple of their number.
    """
    size = len(split.labels)
    share = batch_size // distributed.world_size()
    start = step * batch_size + distributed.rank() * share
    parts = []
    while share > 0:
        epoch, position = divmod(start, size)
        part = epoch_order(seed, epoch, size, split.labels.device)[position : position + share]
        parts.append(part)
        start, share = start + len(part), share - len(part)
    index = torch.cat(parts)
    return Batch(split.images[index], split.labels[index], index)


@lru_cache(maxsize=2)  # a batch can reach into the next epoch
def epoch_order(seed: int, epoch: int, size: int, device: torch.device) -> Tensor:
    """The order of samples in one epoch, [size] int64: a permutation that depends on nothing else."""
    return torch.randperm(size, generator=random.generator(seed, 1, epoch)).to(device)


def eval_batches(split: Split, *, batch_size: int) -> Iterator[Batch]:
    """This rank's part of a split, each sample once over all ranks; the last batch is filled up with rows labelled -1.

    Args:
        split: the split.
        batch_size: samples a batch over all ranks.
    """
    share = max(batch_size // distributed.world_size(), 1)
    index = torch.arange(len(split.labels), device=split.labels.device)[distributed.rank() :: distributed.world_size()]
    for part in index.split(share):
        padding = share - len(part)
        labels = F.pad(split.labels[part], (0, padding), value=-1)
        part = F.pad(part, (0, padding))  # row 0 again: its label is what says that it does not count
        yield Batch(split.images[part], labels, part)


# The data sets. Keyword-only parameters are the fields that `--data.FIELD` sets.


def digits(*, crop_padding: int = 1, flip: bool = False) -> Dataset:
    """UCI optical digits as scikit-learn ships them: 1,797 grey images of 8x8, 10 classes. Nothing to download.

    Scaled up to 16x16 and three equal channels. Of each class every fifth image, from its first on, is held out: 364
    for the test, 1,433 for training.

    Args:
        crop_padding: largest random shift in training, pixels of the 16x16 image.
        flip: whether training mirrors images; a mirrored digit is another one.
    """
    from sklearn.datasets import load_digits  # a second of start-up that other data sets need not pay

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.float32)[:, None] * (255 / 16)  # [N, 1, 8, 8], was 0 to 16
    images = F.interpolate(images, scale_factor=2, mode="bilinear").round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    place_in_class = F.one_hot(labels).cumsum(dim=0).gather(1, labels[:, None])[:, 0] - 1
    held_out = place_in_class % 5 == 0
    return Dataset(
        train=Split(images[~held_out], labels[~held_out]),
        test=Split(images[held_out], labels[held_out]),
        class_names=tuple(str(name) for name in bunch.target_names),
        augment=make_augment(crop_padding=crop_padding, flip=flip),
    )


def fashion_mnist(*, root: str = "data", download: bool = False, crop_padding: int = 2, flip: bool = True) -> Dataset:
    """Fashion-MNIST (arXiv 1708.07747): 60,000 + 10,000 grey images of 28x28, 10 classes; padded to 32x32.

    Read from torchvision's layout under `root`, else from Debian's package dataset-fashion-mnist.

    Args:
        root: folder of data sets, in torchvision's layout.
        download: fetch the files into root if they are not there.
        crop_padding: largest random shift in training, pixels.
        flip: whether training mirrors images.

    Raises:
        InputError: the files are absent, truncated or of another data set.
    """
    if download:
        _download(torchvision.datasets.FashionMNIST, root)
    raw = Path(root) / "FashionMNIST" / "raw"
    folder = next(
        (folder for folder in (raw, Path(root), DEBIAN_FASHION_MNIST) if _idx_path(folder, "train-labels")), None
    )
    if folder is None:
        raise InputError(
            f"Fashion-MNIST is neither in {raw} nor in {DEBIAN_FASHION_MNIST}; fetch it with --data.download, "
            "or with: apt-get install dataset-fashion-mnist"
        )

    def split(prefix: str) -> Split:
        images = torch.from_numpy(_read_idx(folder, f"{prefix}-images", ndim=3))[:, None]  # [N, 1, 28, 28]
        labels = torch.from_numpy(_read_idx(folder, f"{prefix}-labels", ndim=1))
        return Split(F.pad(images, (2, 2, 2, 2)), labels.to(torch.int64))

    return Dataset(
        train=split("train"),
        test=split("t10k"),
        class_names=tuple(torchvision.datasets.FashionMNIST.classes),
        augment=make_augment(crop_padding=crop_padding, flip=flip),
    )


def _idx_path(folder: Path, stem: str) -> Path | None:
    """The one file of a folder that is named like `train-images-idx3-ubyte` or `train-images-idx3-ubyte.gz`."""
    return next(iter(sorted(folder.glob(f"{stem}-idx?-ubyte*"))), None)


def _read_idx(folder: Path, stem: str, *, ndim: int) -> np.ndarray:
    """An array of bytes in the IDX format: a magic number, the sizes as big-endian int32, the data."""
    path = _idx_path(folder, stem)
    if path is None:
        raise InputError(f"no file {stem}-idx{ndim}-ubyte(.gz) in {folder}; fetch Fashion-MNIST there again")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and fetch it again") from error
    header = np.frombuffer(content[: 4 * (ndim + 1)], dtype=">i4")
    if len(header) <= ndim or header[0] != 0x0800 + ndim or len(content) != 4 * len(header) + math.prod(header[1:]):
        raise InputError(f"{path} is not a whole IDX file of {ndim} dimensions; delete it and fetch it again")
    return np.frombuffer(content, dtype=np.uint8, offset=4 * len(header)).reshape(header[1:]).copy()


def cifar(
    dataset_class: type[torchvision.datasets.CIFAR10],
    *,
    root: str = "data",
    download: bool = False,
    crop_padding: int = 4,
    flip: bool = True,
) -> Dataset:
    """CIFAR (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32, 10 or 100 classes.

    Args:
        dataset_class: torchvision's class of the data set.
        root: folder of data sets, in torchvision's layout.
        download: fetch the files into root if they are not there.
        crop_padding: largest random shift in training, pixels.
        flip: whether training mirrors images.

    Raises:
        InputError: the files are absent or damaged.
    """
    if download:
        _download(dataset_class, root)
    try:
        train, test = (dataset_class(root, train=train) for train in (True, False))
    except RuntimeError as error:  # torchvision's answer to a missing file and to a wrong checksum
        raise InputError(
            f"{dataset_class.__name__} is not in {Path(root) / dataset_class.base_folder}, or is damaged there; "
            "fetch it with --data.download, or set --data.root"
        ) from error

    def split(dataset: torchvision.datasets.CIFAR10) -> Split:
        return Split(torch.from_numpy(dataset.data).permute(0, 3, 1, 2), torch.tensor(dataset.targets))

    return Dataset(split(train), split(test), tuple(train.classes), make_augment(crop_padding=crop_padding, flip=flip))


def _download(dataset_class: type, root: str) -> None:
    if distributed.is_main():
        try:
            dataset_class(root, download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(f"could not download {dataset_class.__name__} into {root}: {error}") from error
    distributed.barrier()


def make_augment(*, crop_padding: int, flip: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The training augmentation `(keys, images) -> images`: a shifted crop, then perhaps a mirror."""

    def augment(keys: Tensor, images: Tensor) -> Tensor:
        if crop_padding > 0:
            images = random_crop(random.fold_in(keys, 0), images, padding=crop_padding)
        return random_flip(random.fold_in(keys, 1), images) if flip else images

    return augment


DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar10": partial(cifar, torchvision.datasets.CIFAR10),
    "cifar100": partial(cifar, torchvision.datasets.CIFAR100),
}
