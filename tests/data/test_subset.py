"""Some training images of each class."""

import pytest
import torch
from torch import Tensor

from backbones.data import digits, take_per_class
from backbones.errors import InputError


def images_of(dataset) -> Tensor:
    index = torch.arange(dataset.train.size)
    return dataset.train.read(index, index)


def test_so_many_of_each_class_and_the_rest_as_it_was() -> None:
    whole = digits()
    few = take_per_class(whole, 7, seed=3)
    assert torch.bincount(few.train.labels).tolist() == [7] * 10
    assert few.info == whole.info and few.test is whole.test
    index = torch.arange(whole.train.size)
    everything = {
        image.numpy().tobytes(): label for image, label in zip(images_of(whole), whole.train.labels, strict=True)
    }
    assert len(everything) == len(index)
    for image, label in zip(images_of(few), few.train.labels, strict=True):
        assert everything[image.numpy().tobytes()] == label


def test_which_ones_is_a_matter_of_the_seed() -> None:
    drawn = [take_per_class(digits(), 7, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(images_of(drawn[0]), images_of(drawn[1]))
    assert drawn[0].train.digest() == drawn[1].train.digest() != drawn[2].train.digest() != digits().train.digest()
    assert not torch.equal(images_of(drawn[0]), images_of(drawn[2]))


def test_a_class_with_fewer_keeps_all() -> None:
    whole = digits()
    assert torch.equal(images_of(take_per_class(whole, 10_000)), images_of(whole))
    with pytest.raises(InputError, match="number is 0; it must be 1 or more"):
        take_per_class(whole, 0)
