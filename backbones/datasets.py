"""The data sets, read whole into uint8 tensors. The only importer of torchvision.

Keyword-only parameters are the fields that `--data.FIELD` sets. N samples, C channels, H and W height and width.
"""

import gzip
import math
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import backbones.distributed as distributed
from backbones.augment import make_augment
from backbones.data import Dataset, Split
from backbones.errors import InputError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


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
    dataset_class = _torchvision_class("FashionMNIST")
    if download:
        _download(dataset_class, root)
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
        class_names=tuple(dataset_class.classes),
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
    except (OSError, EOFError, zlib.error) as error:  # not to be read, or cut short
        raise InputError(f"{path} is damaged ({error}); delete it and fetch it again") from error
    header = np.frombuffer(content[: 4 * (ndim + 1)], dtype=">i4")
    if len(header) <= ndim or header[0] != 0x0800 + ndim or len(content) != 4 * len(header) + math.prod(header[1:]):
        raise InputError(f"{path} is not a whole IDX file of {ndim} dimensions; delete it and fetch it again")
    return np.frombuffer(content, dtype=np.uint8, offset=4 * len(header)).reshape(header[1:]).copy()


def cifar(
    name: str, *, root: str = "data", download: bool = False, crop_padding: int = 4, flip: bool = True
) -> Dataset:
    """CIFAR (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32, 10 or 100 classes.

    Args:
        name: of torchvision's class, CIFAR10 or CIFAR100.
        root: folder of data sets, in torchvision's layout.
        download: fetch the files into root if they are not there.
        crop_padding: largest random shift in training, pixels.
        flip: whether training mirrors images.

    Raises:
        InputError: the files are absent or damaged.
    """
    dataset_class = _torchvision_class(name)
    if download:
        _download(dataset_class, root)
    try:
        train, test = (dataset_class(root, train=train) for train in (True, False))
    except RuntimeError as error:  # torchvision's answer to a missing file and to a wrong checksum
        raise InputError(
            f"{name} is not in {Path(root) / dataset_class.base_folder}, or is damaged there; "
            "fetch it with --data.download, or set --data.root"
        ) from error

    def split(dataset: Any) -> Split:
        return Split(torch.from_numpy(dataset.data).permute(0, 3, 1, 2), torch.tensor(dataset.targets))

    return Dataset(split(train), split(test), tuple(train.classes), make_augment(crop_padding=crop_padding, flip=flip))


def _torchvision_class(name: str) -> type:
    import torchvision.datasets  # here: it brings the compiler, a second and a half that --help need not wait for

    return getattr(torchvision.datasets, name)


def _download(dataset_class: type, root: str) -> None:
    def download() -> None:
        try:
            dataset_class(root, download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(f"could not download {dataset_class.__name__} into {root}: {error}") from error

    distributed.on_main(download)


DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar10": partial(cifar, "CIFAR10"),
    "cifar100": partial(cifar, "CIFAR100"),
}
