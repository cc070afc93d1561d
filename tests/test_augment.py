import torch
import torchvision.transforms.functional as oracle

import backbones.random as random
from backbones.augment import normalize, random_crop, random_flip


def make_images(num_images: int) -> torch.Tensor:
    return torch.randint(0, 256, (num_images, 3, 8, 6), generator=random.generator(0)).to(torch.uint8)


def make_keys(num_images: int) -> torch.Tensor:
    return random.fold_in(random.key(1), torch.arange(num_images))


def test_crop_is_a_window_of_the_padded_image_and_every_window_comes() -> None:
    images, seen = make_images(400), set()
    cropped = random_crop(make_keys(400), images, padding=2)
    for image, crop in zip(images, cropped, strict=True):
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


def test_flip_mirrors_about_half() -> None:
    images = make_images(400)
    flipped = random_flip(make_keys(400), images)
    is_mirrored = [torch.equal(oracle.hflip(a), b) for a, b in zip(images, flipped, strict=True)]
    is_same = [torch.equal(a, b) for a, b in zip(images, flipped, strict=True)]
    assert all(a != b for a, b in zip(is_mirrored, is_same, strict=True))
    assert 160 < sum(is_mirrored) < 240


def test_what_happens_to_a_sample_does_not_depend_on_its_batch() -> None:
    images, keys = make_images(50), make_keys(50)
    for augment in (lambda k, x: random_crop(k, x, padding=2), random_flip):
        assert torch.equal(augment(keys, images)[20:30], augment(keys[20:30], images[20:30]))


def test_normalize_is_torchvisions_in_channels_last_memory() -> None:
    images = make_images(4)
    mean, std = torch.tensor([100.0, 120.0, 140.0]), torch.tensor([50.0, 60.0, 70.0])
    normalized = normalize(images, mean, std)
    torch.testing.assert_close(normalized, oracle.normalize(images.float(), mean.tolist(), std.tolist()))
    assert normalized.is_contiguous(memory_format=torch.channels_last)
