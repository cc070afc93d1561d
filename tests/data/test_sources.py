import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.datasets
from helpers.formats import write_cifar, write_fashion_mnist
from sklearn.datasets import load_digits

from backbones.data import DATASETS, DataInfo, Source, fashion_mnist, in_memory
from backbones.data.source import channel_statistics, check_statistics
from backbones.errors import InputError
from backbones.types import CPU
from experiments.digits import digits_vit_tiny

fashion_mnist_module = sys.modules[fashion_mnist.__module__]


def read_all(source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.arange(source.size)
    return source.read(index, index), source.labels


def test_digits_are_split_as_written_down() -> None:
    digits = DATASETS["digits"]()
    (images, _), (test_images, labels) = read_all(digits.train), read_all(digits.test)
    assert images.shape == (1433, 3, 16, 16) and test_images.shape == (364, 3, 16, 16)
    assert images.dtype == torch.uint8 and images.max() == 255
    assert labels[:10].tolist() == list(range(10))  # the first of each class
    assert torch.bincount(labels).tolist() == [36, 37, 36, 37, 37, 37, 37, 36, 35, 36]
    assert digits.info.class_names == tuple("0123456789") and digits.info.image_shape == (3, 16, 16)
    assert DataInfo.from_json(json.loads(json.dumps(digits.info._asdict()))) == digits.info


def test_digits_are_those_of_scikit_learn() -> None:
    theirs = load_digits()
    images = torch.from_numpy(theirs.images * (255 / 16)).float()[:, None]
    images = F.interpolate(images, scale_factor=2, mode="bilinear").round().to(torch.uint8)
    wanted = [(bytes(image.flatten()), label) for image, label in zip(images, theirs.target, strict=True)]
    ours = [read_all(source) for source in DATASETS["digits"]()]
    got = [(bytes(image[0].flatten()), label) for split in ours for image, label in zip(*split, strict=True)]
    assert sorted(got) == sorted(wanted)


def test_equal_data_have_equal_digests() -> None:
    digits = DATASETS["digits"]()
    assert digits.train.digest() == DATASETS["digits"]().train.digest() != digits.test.digest()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], "2 of the 3 training labels are outside 0 to 0: 1, 2"),
        ([0, -1, 0], "1 of the 3 training labels are outside 0 to 0: -1"),
        ([0, 0], "the training split has 3 images and 2 labels"),
    ],
)
def test_labels_are_checked(labels: list[int], message: str) -> None:
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    good = images, torch.zeros(3, dtype=torch.int64)
    with pytest.raises(InputError, match=message):
        in_memory((images, torch.tensor(labels)), good, ("only",), CPU)
    with pytest.raises(InputError, match="the test split has no images"):
        in_memory(good, (images[:0], good[1][:0]), ("only",), CPU)
    for labels in (good[1].byte(), good[1].float(), good[1][:, None]):
        with pytest.raises(InputError, match=r"the training labels are torch.* \(3.*\); wanted torch.int64 \[N\]"):
            in_memory((images, labels), good, ("only",), CPU)


def test_images_in_memory_are_tensors_with_the_channels_first() -> None:
    images, labels = np.zeros((5, 32, 16, 3), dtype=np.uint8), torch.zeros(5, dtype=torch.int64)
    last = torch.from_numpy(images), labels
    first = last[0].permute(0, 3, 1, 2), labels
    assert in_memory(first, first, ("only",), CPU).info.image_shape == (3, 32, 16)
    with pytest.raises(InputError, match=r"\(5, 32, 16, 3\) look like \[N, H, W, C\].*images\.permute\(0, 3, 1, 2\)"):
        in_memory(last, last, ("only",), CPU)
    for split in ((images, labels), (first[0], labels.tolist())):
        with pytest.raises(InputError, match=r"the test split is (ndarray and Tensor|Tensor and list); wanted tensors"):
            in_memory(first, split, ("only",), CPU)


def test_labels_of_a_source_of_ones_own_are_checked() -> None:
    dataset = DATASETS["digits"]()
    wrong = dataset._replace(train=dataset.train._replace(labels=dataset.train.labels + 1))
    with pytest.raises(InputError, match="training labels are outside 0 to 9: 10"):
        digits_vit_tiny.make(wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": (*"0132456789",)}, "class 2 is 2 in the training split and 3 in the test split; wanted"),
        ({"class_names": (*"012345678",)}, "class 9 is 9 in the training split and None in the test split"),
        ({"image_shape": (3, 16, 8)}, r"training images are \(3, 16, 16\), and the test images \(3, 16, 8\); want"),
    ],
)
def test_both_splits_have_the_same_classes_and_one_shape(change: dict, message: str) -> None:
    """As those of a data set of one's own may not, where each split is read from a folder of its own."""
    dataset = DATASETS["digits"]()
    test = dataset.test._replace(info=dataset.info._replace(**change))
    with pytest.raises(InputError, match=message):
        digits_vit_tiny.make(dataset._replace(test=test))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), r"wanted those of pixels in \[0, 255\]: times 255"),
        ((30.0,), (50.0,), "wanted 3 numbers each, with std above 0"),
        ((30.0,) * 3, (50.0, 0.0, 50.0), "wanted 3 numbers each, with std above 0"),
        ((30.0,) * 3, (50.0, 50.0, float("nan")), "wanted 3 numbers each, with std above 0"),
    ],
)
def test_statistics_of_a_source_of_ones_own_are_checked(mean: tuple, std: tuple, message: str) -> None:
    dataset = DATASETS["digits"]()
    info = dataset.info._replace(mean=mean, std=std)
    with pytest.raises(InputError, match=message):
        digits_vit_tiny.make(dataset._replace(train=dataset.train._replace(info=info)))


@pytest.mark.parametrize("largest", [1, 2])
def test_pixels_may_be_small_numbers(largest: int) -> None:
    labels = torch.arange(10)
    images = torch.randint(1 + largest, (10, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    check_statistics(in_memory((images, labels), (images, labels), tuple("0123456789"), CPU).train)


@pytest.mark.parametrize(("layout", "suffix"), [("FashionMNIST/raw", ""), (".", ".gz")])
def test_fashion_mnist_in_both_layouts(layout: str, suffix: str, tmp_path: Path) -> None:
    images = write_fashion_mnist(tmp_path / layout, suffix)
    dataset = DATASETS["fashion-mnist"](root=str(tmp_path))
    (train_images, _), (test_images, labels) = read_all(dataset.train), read_all(dataset.test)
    assert train_images.shape == (20, 1, 32, 32) and test_images.shape == (10, 1, 32, 32)
    np.testing.assert_array_equal(train_images[:, 0, 2:-2, 2:-2], images[:20])
    assert labels.tolist() == list(range(10))
    assert dataset.info.class_names[9] == "Ankle boot"


def test_fashion_mnist_reads_as_torchvision_reads_it(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "FashionMNIST" / "raw", "")
    oracle = torchvision.datasets.FashionMNIST(tmp_path, train=True)
    images, labels = read_all(DATASETS["fashion-mnist"](root=str(tmp_path)).train)
    assert torch.equal(images[:, 0, 2:-2, 2:-2], oracle.data) and torch.equal(labels, oracle.targets)


@pytest.mark.skipif(
    not fashion_mnist_module.DEBIAN_FOLDER.exists(), reason="needs: apt-get install dataset-fashion-mnist"
)
def test_fashion_mnist_of_debian() -> None:
    dataset = DATASETS["fashion-mnist"](root="absent")
    assert dataset.train.size == 60_000 and dataset.test.size == 10_000
    images, labels = read_all(dataset.train)
    assert torch.bincount(labels).tolist() == [6000] * 10
    (mean,), (std,) = channel_statistics(images[:, :, 2:-2, 2:-2])
    assert mean / 255 == pytest.approx(0.2860, abs=1e-4) and std / 255 == pytest.approx(0.3530, abs=1e-4)


def test_absent_fashion_mnist_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist_module, "DEBIAN_FOLDER", tmp_path / "debian")
    with pytest.raises(InputError, match=r"FashionMNIST/raw nor .*--data\.download.*apt-get install"):
        DATASETS["fashion-mnist"](root=str(tmp_path))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_truncated_fashion_mnist_names_the_file(suffix: str, tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path, suffix)
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    whole = path.read_bytes()
    for length in (len(whole) - 100, 5, 0):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=f"{path.name} is .*delete it and fetch it again"):
            DATASETS["fashion-mnist"](root=str(tmp_path))
    path.unlink()
    with pytest.raises(InputError, match="no file train-images-idx3-ubyte"):
        DATASETS["fashion-mnist"](root=str(tmp_path))


@pytest.mark.parametrize(("name", "num_train"), [("cifar10", 50), ("cifar100", 10)])
def test_cifar_in_its_own_format(name: str, num_train: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_cifar(tmp_path, name, monkeypatch)
    dataset = DATASETS[name](root=str(tmp_path))
    ours, _ = read_all(dataset.train)
    assert ours.shape == (num_train, 3, 32, 32) and ours.dtype == torch.uint8
    np.testing.assert_array_equal(ours, images[:num_train].reshape(-1, 3, 32, 32))
    assert read_all(dataset.test)[1].tolist() == list(range(10))
    assert dataset.info.class_names[3] == "class 3"


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
