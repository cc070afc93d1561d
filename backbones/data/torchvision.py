"""torchvision's data-set classes, which know file names, checksums and where to download from."""

from typing import Any

import backbones.distributed as distributed
from backbones.errors import InputError


def torchvision_class(name: str, root: str, *, download: bool) -> Any:
    """A class of torchvision.datasets; with `download`, its files are fetched into `root` first, once on each machine.

    Raises:
        InputError: they cannot be downloaded.
    """
    import torchvision.datasets  # late: it brings the compiler, a second and a half that --help need not wait for

    dataset_class = getattr(torchvision.datasets, name)

    def fetch() -> None:
        try:
            dataset_class(root, download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(f"could not download {name} into {root}: {error}") from error

    if download:
        distributed.once_a_node(fetch)
    return dataset_class
