"""Small data sets in the formats of Fashion-MNIST and CIFAR."""

import gzip
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision


def write_idx(path: Path, array: np.ndarray) -> None:
    header = np.array([0x0800 + array.ndim, *array.shape], dtype=">i4").tobytes()
    content = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion_mnist(folder: Path, suffix: str) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28))
    for prefix, part in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images[part])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", np.arange(30)[part] % 10)
    return images


def write_cifar(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Small files in CIFAR's own format, and torchvision's list of checksums made to match them."""
    dataset_class = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    label_key = {"cifar10": "labels", "cifar100": "fine_labels"}[name]
    folder = root / dataset_class.base_folder
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (60, 3072), dtype=np.uint8)

    def write(filename: str, content: dict) -> list[str]:
        (folder / filename).write_bytes(pickle.dumps(content))
        return [filename, hashlib.md5((folder / filename).read_bytes()).hexdigest()]

    for attribute in ("train_list", "test_list"):
        files = [
            write(filename, {"data": images[10 * i : 10 * i + 10], label_key: list(range(10))})
            for i, (filename, _) in enumerate(getattr(dataset_class, attribute))
        ]
        monkeypatch.setattr(dataset_class, attribute, files)
    meta = dataset_class.meta
    names = [f"class {i}" for i in range(int(name.removeprefix("cifar")))]
    filename, checksum = write(meta["filename"], {meta["key"]: names})
    monkeypatch.setattr(dataset_class, "meta", {**meta, "filename": filename, "md5": checksum})
    return images
