"""CIFAR: Alex Krizhevsky, "Learning multiple layers of features from tiny images", 2009."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.data.source import Dataset, in_memory
from backbones.data.torchvision import torchvision_class
from backbones.errors import InputError
from backbones.types import CPU


def cifar(name: str, device: torch.device = CPU, *, root: str = "data", download: bool = False) -> Dataset:
    """CIFAR (Krizhevsky 2009): 50,000 + 10,000 color images of 32x32, 10 or 100 classes.

    Args:
        name: of torchvision's class, CIFAR10 or CIFAR100.
        device: where the samples are kept.
        root: folder of data sets, in torchvision's layout.
        download: fetch the files into root if they are not there.

    Raises:
        InputError: the files are absent or damaged.
    """
    dataset_class = torchvision_class(name, root, download=download)
    try:
        train, test = (dataset_class(root, train=train) for train in (True, False))
    except RuntimeError as error:  # torchvision's answer to a missing file and to a wrong checksum
        raise InputError(
            f"{name} is not in {Path(root) / dataset_class.base_folder}, or is damaged there; "
            "fetch it with --data.download of train.py, or set --data.root"
        ) from error

    def split(dataset: Any) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(dataset.data).permute(0, 3, 1, 2), torch.tensor(dataset.targets)

    return in_memory(split(train), split(test), tuple(train.classes), device)


cifar10 = partial(cifar, "CIFAR10")
cifar100 = partial(cifar, "CIFAR100")
