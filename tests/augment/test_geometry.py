import pytest
import torch
import torchvision.transforms.functional as oracle

import backbones.random as random
from backbones.augment import chain, crop_flip, identity, make_normalize, random_crop, random_flip
from backbones.data.source import CPU
from backbones.errors import InputError
from backbones.types import Batch


def make_batch(size: int) -> Batch:
    images = torch.randint(0, 256, (size, 3, 8, 6), generator=random.generator(0)).to(torch.uint8)
    zeros = torch.zeros(size, dtype=torch.int64)
    return Batch(images, zeros, None, torch.ones(size), torch.arange(size), zeros)


def make_keys(size: int) -> torch.Tensor:
    return random.fold_in(random.key(1), torch.arange(size))


def test_a_crop_is_a_window_of_the_padded_image_and_every_window_occurs() -> None:
    batch, seen = make_batch(400), set()
    cropped = random_crop(2)(make_keys(400), batch).images
    for image, crop in zip(batch.images, cropped, strict=True):
        padded = oracle.pad(image, [2])
        matches = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(oracle.crop(padded, top, left, 8, 6), crop)
        ]
        assert len(matches) == 1
        seen |= set(matches)
    assert len(seen) == 25


def test_about_half_of_the_images_are_flipped() -> None:
    batch = make_batch(400)
    flipped = random_flip()(make_keys(400), batch).images
    is_mirrored = [torch.equal(oracle.hflip(a), b) for a, b in zip(batch.images, flipped, strict=True)]
    is_same = [torch.equal(a, b) for a, b in zip(batch.images, flipped, strict=True)]
    assert all(a != b for a, b in zip(is_mirrored, is_same, strict=True))
    assert 160 < sum(is_mirrored) < 240


def test_the_augmentation_of_a_sample_does_not_depend_on_its_batch() -> None:
    batch, keys = make_batch(50), make_keys(50)
    part = Batch(*(leaf if leaf is None else leaf[20:30] for leaf in batch))
    for augment in (random_crop(2), random_flip(), crop_flip(padding=1)):
        whole = augment(keys, batch)
        assert torch.equal(whole.images[20:30], augment(keys[20:30], part).images)
        assert whole.labels is batch.labels and whole.index is batch.index


def test_parts_of_a_chain_draw_numbers_of_their_own() -> None:
    batch, keys = make_batch(50), make_keys(50)
    twice = chain(random_flip(), random_flip())(keys, batch).images
    by_hand = random_flip()(random.fold_in(keys, 1), random_flip()(random.fold_in(keys, 0), batch)).images
    assert torch.equal(twice, by_hand) and not torch.equal(twice, batch.images)


def test_nothing_to_do() -> None:
    batch, keys = make_batch(8), make_keys(8)
    for augment in (identity(), crop_flip(padding=0, flip=False)):
        assert torch.equal(augment(keys, batch).images, batch.images)
    with pytest.raises(InputError, match="padding is -1; it must be 0 or more"):
        crop_flip(padding=-1)


@pytest.mark.parametrize("augment", [random_crop(2), random_flip()])
def test_compiled_is_eager(augment) -> None:
    batch, keys = make_batch(16), make_keys(16)
    compiled = torch.compile(augment, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(keys, batch).images, augment(keys, batch).images)


def test_normalize_is_torchvisions_in_channels_last_memory() -> None:
    images = make_batch(4).images
    mean, std = (100.0, 120.0, 140.0), (50.0, 60.0, 70.0)
    normalized = make_normalize(mean, std, CPU)(images)
    torch.testing.assert_close(normalized, oracle.normalize(images.float(), list(mean), list(std)))
    assert normalized.is_contiguous(memory_format=torch.channels_last)
