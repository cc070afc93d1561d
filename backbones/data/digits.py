"""UCI optical digits, which scikit-learn ships."""

from functools import cache
from importlib.metadata import distribution

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.data.source import Dataset, in_memory
from backbones.ranges import Count, checked
from backbones.types import CPU


@checked
def digits(device: torch.device = CPU, *, size: Count = 16) -> Dataset:
    """UCI optical digits as scikit-learn ships them: 1,797 grey images of 8x8, 10 classes. Nothing to download.

    In three equal channels. Of each class every fifth image, from its first on, is held out: 364 for the test, 1,433
    for training.

    Args:
        device: where the samples are kept.
        size: height and width to which the images are scaled, pixels.
    """
    table = _read_table()
    images = table[:, :-1].to(torch.float32).reshape(-1, 1, 8, 8) * (255 / 16)
    images = F.interpolate(images, size=(size, size), mode="bilinear").round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = table[:, -1].to(torch.int64)
    position_in_class = F.one_hot(labels).cumsum(dim=0).gather(1, labels[:, None])[:, 0] - 1
    held_out = position_in_class % 5 == 0
    return in_memory(
        (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out]), tuple("0123456789"), device
    )


@cache
def _read_table() -> Tensor:
    """[N, 65]: an image in [0, 16], and its class. Not to be changed."""
    # the file that `sklearn.datasets.load_digits` reads, without the second that importing it takes
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    return torch.from_numpy(np.loadtxt(str(path), delimiter=","))
