"""Fashion-MNIST: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
algorithms", arXiv 1708.07747.
"""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.data.source import Dataset, in_memory
from backbones.data.torchvision import torchvision_class
from backbones.errors import InputError
from backbones.types import CPU

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def fashion_mnist(device: torch.device = CPU, *, root: str = "data", download: bool = False) -> Dataset:
    """Fashion-MNIST (arXiv 1708.07747): 60,000 + 10,000 grey images of 28x28, 10 classes; padded to 32x32.

    Read from torchvision's layout under `root`, else from Debian's package dataset-fashion-mnist.

    Args:
        device: where the samples are kept.
        root: folder of data sets, in torchvision's layout.
        download: fetch the files into root if they are not there.

    Raises:
        InputError: the files are absent, truncated or of another data set.
    """
    dataset_class = torchvision_class("FashionMNIST", root, download=download)
    raw = Path(os.path.expanduser(root)) / "FashionMNIST" / "raw"
    folders = (raw, raw.parent.parent, DEBIAN_FOLDER)
    folder = next((folder for folder in folders if _idx_path(folder, "train-labels")), None)
    if folder is None:
        raise InputError(
            f"Fashion-MNIST is neither in {raw} nor in {DEBIAN_FOLDER}; fetch it with --data.download of train.py, "
            "or with: apt-get install dataset-fashion-mnist"
        )

    def split(prefix: str) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(_read_idx(folder, f"{prefix}-images", ndim=3))[:, None]  # [N, 1, 28, 28]
        labels = torch.from_numpy(_read_idx(folder, f"{prefix}-labels", ndim=1))
        return F.pad(images, (2, 2, 2, 2)), labels.to(torch.int64)

    return in_memory(split("train"), split("t10k"), tuple(dataset_class.classes), device)


def _idx_path(folder: Path, stem: str) -> Path | None:
    """The one file of a folder that is named like `train-images-idx3-ubyte` or `train-images-idx3-ubyte.gz`."""
    return min(folder.glob(f"{stem}-idx?-ubyte*"), default=None)


def _read_idx(folder: Path, stem: str, *, ndim: int) -> np.ndarray:
    """An array of bytes in the IDX format: a magic number, the sizes as big-endian int32, the data."""
    path = _idx_path(folder, stem)
    if path is None:
        raise InputError(f"no file {stem}-idx{ndim}-ubyte(.gz) in {folder}; fetch Fashion-MNIST there again")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and fetch it again") from error
    size = 4 * (ndim + 1)
    header = np.frombuffer(content[:size].ljust(size, b"\0"), dtype=">i4")
    if header[0] != 0x0800 + ndim or len(content) != size + math.prod(header[1:]):
        raise InputError(f"{path} is not a complete IDX file of {ndim} dimensions; delete it and fetch it again")
    return np.frombuffer(content, dtype=np.uint8, offset=size).reshape(header[1:]).copy()
