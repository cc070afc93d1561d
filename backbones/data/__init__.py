"""Data sets by name, and the batches of a run.

A data set is a function of `device` and, keyword-only, of the fields that `--data.FIELD` sets.
"""

from collections.abc import Callable

from backbones.data.batches import Batches, Sampling, eval_batches, make_batches
from backbones.data.cifar import cifar10, cifar100
from backbones.data.digits import digits
from backbones.data.fashion_mnist import fashion_mnist
from backbones.data.image_folder import image_folder
from backbones.data.image_list import image_list
from backbones.data.image_tar import image_tar
from backbones.data.parquet import parquet
from backbones.data.source import DataInfo, Dataset, Source, in_memory
from backbones.data.subset import take_per_class

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "image-folder": image_folder,
    "image-tar": image_tar,
    "image-list": image_list,
    "parquet": parquet,
}
