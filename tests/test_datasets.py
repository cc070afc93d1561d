import gzip
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets

import backbones.datasets as datasets
import backbones.random as random
from backbones.data import Split, channel_statistics
from backbones.datasets import DATASETS
from backbones.errors import InputError


def test_digits_are_split_as_written_down() -> None:
    digits = DATASETS["digits"]()
    assert digits.train.images.shape == (1433, 3, 16, 16) and digits.test.images.shape == (364, 3, 16, 16)
    assert digits.train.images.dtype == torch.uint8 and digits.train.images.max() == 255
    assert digits.test.labels[:10].tolist() == list(range(10))  # the first of each class
    assert torch.bincount(digits.test.labels).tolist() == [36, 37, 36, 37, 37, 37, 37, 36, 35, 36]
    assert digits.class_names == tuple("0123456789")


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


@pytest.mark.parametrize(("layout", "suffix"), [("FashionMNIST/raw", ""), (".", ".gz")])
def test_fashion_mnist_in_both_layouts(layout: str, suffix: str, tmp_path: Path) -> None:
    images = write_fashion_mnist(tmp_path / layout, suffix)
    dataset = DATASETS["fashion-mnist"](root=str(tmp_path))
    assert dataset.train.images.shape == (20, 1, 32, 32) and dataset.test.images.shape == (10, 1, 32, 32)
    np.testing.assert_array_equal(dataset.train.images[:, 0, 2:-2, 2:-2], images[:20])
    assert dataset.test.labels.tolist() == list(range(10))
    assert dataset.class_names[9] == "Ankle boot"


def test_fashion_mnist_reads_as_torchvision_reads_it(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "FashionMNIST" / "raw", "")
    oracle = torchvision.datasets.FashionMNIST(tmp_path, train=True)
    ours = DATASETS["fashion-mnist"](root=str(tmp_path)).train
    assert torch.equal(ours.images[:, 0, 2:-2, 2:-2], oracle.data) and torch.equal(ours.labels, oracle.targets)


@pytest.mark.skipif(not datasets.DEBIAN_FASHION_MNIST.exists(), reason="needs: apt-get install dataset-fashion-mnist")
def test_fashion_mnist_of_debian() -> None:
    dataset = DATASETS["fashion-mnist"](root="absent")
    assert len(dataset.train.labels) == 60_000 and len(dataset.test.labels) == 10_000
    assert torch.bincount(dataset.train.labels).tolist() == [6000] * 10
    mean, std = channel_statistics(Split(dataset.train.images[:, :, 2:-2, 2:-2], dataset.train.labels))
    assert mean.item() / 255 == pytest.approx(0.2860, abs=1e-4) and std.item() / 255 == pytest.approx(0.3530, abs=1e-4)


def test_absent_fashion_mnist_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    with pytest.raises(InputError, match=r"FashionMNIST/raw nor .*--data\.download.*apt-get install"):
        DATASETS["fashion-mnist"](root=str(tmp_path))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_truncated_fashion_mnist_names_the_file(suffix: str, tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path, suffix)
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"{path.name} is .*delete it and fetch it again"):
        DATASETS["fashion-mnist"](root=str(tmp_path))
    path.unlink()
    with pytest.raises(InputError, match="no file train-images-idx3-ubyte"):
        DATASETS["fashion-mnist"](root=str(tmp_path))


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
    filename, checksum = write(meta["filename"], {meta["key"]: [f"class {i}" for i in range(10)]})
    monkeypatch.setattr(dataset_class, "meta", {**meta, "filename": filename, "md5": checksum})
    return images


@pytest.mark.parametrize(("name", "num_train"), [("cifar10", 50), ("cifar100", 10)])
def test_cifar_in_its_own_format(name: str, num_train: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_cifar(tmp_path, name, monkeypatch)
    dataset = DATASETS[name](root=str(tmp_path))
    assert dataset.train.images.shape == (num_train, 3, 32, 32) and dataset.train.images.dtype == torch.uint8
    np.testing.assert_array_equal(dataset.train.images, images[:num_train].reshape(-1, 3, 32, 32))
    assert dataset.test.labels.tolist() == list(range(10))
    assert dataset.class_names[3] == "class 3"


def test_absent_and_damaged_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"CIFAR10 is not in .*cifar-10-batches-py.*--data\.download"):
        DATASETS["cifar10"](root=str(tmp_path))
    write_cifar(tmp_path, "cifar10", monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="or is damaged there"):
        DATASETS["cifar10"](root=str(tmp_path))


def test_failed_download_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)
    with pytest.raises(InputError, match=r"could not download CIFAR10 into .*no route to host"):
        DATASETS["cifar10"](root=str(tmp_path), download=True)


def test_augmentation_of_a_data_set() -> None:
    keys = random.fold_in(random.key(0), torch.arange(64))
    digits = DATASETS["digits"]().train.images[:64]
    plain = DATASETS["digits"](crop_padding=0)
    assert torch.equal(plain.augment(keys, digits), digits)
    assert not torch.equal(DATASETS["digits"]().augment(keys, digits), digits)
    mirrored = DATASETS["digits"](crop_padding=0, flip=True).augment(keys, digits)
    assert 0 < (mirrored != digits).flatten(1).any(dim=1).sum() < 64
