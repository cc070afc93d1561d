import torch
import torchvision.transforms.v2.functional as oracle
from helpers.batches import make_batch, make_keys
from torch import Tensor

import backbones.random as random
from backbones.augment import cutout, random_erasing


def bounds(erased: Tensor) -> tuple[int, int, int, int]:
    """Top, left, height and width of what is erased in one image, which must be a full rectangle."""
    rows, columns = erased.any(dim=1).nonzero()[:, 0], erased.any(dim=0).nonzero()[:, 0]
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
    assert erased.sum() == height * width
    return top, left, height, width


def test_cutout_is_the_mask_of_the_papers_code() -> None:
    """For each image there is one centre, and each centre occurs (github.com/uoguelph-mlrg/Cutout, util/cutout.py)."""
    batch, size, seen = make_batch(800, (3, 8, 6)), 4, set()
    got = cutout(size=size, fill=9)(make_keys(800), batch).images
    centres = {}
    for y in range(8):
        for x in range(6):
            mask = torch.zeros(8, 6, dtype=torch.bool)
            mask[max(y - size // 2, 0) : min(y + size // 2, 8), max(x - size // 2, 0) : min(x + size // 2, 6)] = True
            centres[y, x] = mask
    for image, cut in zip(batch.images, got, strict=True):
        matches = [c for c, mask in centres.items() if torch.equal(cut, torch.where(mask, 9, image))]
        assert len(matches) == 1
        seen |= set(matches)
    assert seen == set(centres)
    odd = cutout(size=3)(make_keys(99), make_batch(99, (3, 99, 99))).images
    assert bounds((odd[0] == 127).all(dim=0))[2:] == (3, 3)


def test_erasing_is_torchvisions() -> None:
    batch, keys = make_batch(100, (3, 16, 12)), make_keys(100)
    got = random_erasing(probability=1.0, fill=40)(keys, batch).images
    keys_rectangle = random.fold_in(random.fold_in(keys, 1), 1)
    rectangles = random.rectangle(keys_rectangle, 16, 12, (0.02, 0.33), (0.3, 3.3))
    value = torch.tensor([40], dtype=torch.uint8)[:, None, None]
    for image, erased, *rectangle in zip(batch.images, got, *rectangles, strict=True):
        assert torch.equal(erased, oracle.erase(image, *(int(each) for each in rectangle), value))


def test_about_half_of_the_images_are_erased_within_the_ranges() -> None:
    batch = make_batch(400, (1, 40, 40))
    batch = batch._replace(images=torch.full_like(batch.images, 255))
    erased = random_erasing(fill=0)(make_keys(400), batch).images[:, 0] == 0
    some = erased.flatten(1).any(dim=1)
    assert 160 < some.sum() < 240
    shapes = torch.tensor([bounds(each)[2:] for each in erased[some]]).double()
    area, ratio = shapes.prod(dim=1) / 1600, shapes[:, 1] / shapes[:, 0]
    assert 0.015 < area.min() < 0.05 and 0.3 < area.max() < 0.35
    assert 0.24 < ratio.min() < 0.4 and 2.5 < ratio.max() < 4


def test_erased_pixels_have_independent_random_levels() -> None:
    """As in the paper: every level is equally frequent, in every channel, and no two images are alike."""
    batch = make_batch(50, (3, 32, 32))
    batch = batch._replace(images=torch.zeros_like(batch.images))
    got = random_erasing(probability=1.0, scale=(1.0, 1.0), ratio=(1.0, 1.0))(make_keys(50), batch).images
    counts = torch.bincount(got.flatten().long(), minlength=256)
    assert ((counts - 600).abs() < 5 * 600**0.5).all()  # 50 x 3 x 32 x 32 / 256
    pixels = got.double().flatten(1)
    correlation = torch.corrcoef(pixels) - torch.eye(50)
    assert correlation.abs().max() < 5 / pixels.shape[1] ** 0.5
    shifted = torch.corrcoef(torch.stack([pixels[:, :-1].flatten(), pixels[:, 1:].flatten()]))[0, 1]
    assert shifted.abs() < 5 / pixels.numel() ** 0.5
