"""torchvision's data-set classes, which know file names, checksums and where to download from."""

from typing import Any

import backbones.distributed as distributed
from backbones.errors import InputError


def torchvision_class(name: str) -> Any:
    """A class of torchvision.datasets."""
    import torchvision.datasets  # late: it brings the compiler, a second and a half that --help need not wait for

    return getattr(torchvision.datasets, name)


def download_into(root: str, dataset_class: Any) -> None:
    """Download a data set of torchvision, once on each machine.

    Raises:
        InputError: it cannot be had.
    """

    def download() -> None:
        try:
            dataset_class(root, download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(f"could not download {dataset_class.__name__} into {root}: {error}") from error

    distributed.once_a_node(download)
