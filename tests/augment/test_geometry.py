from itertools import pairwise, product

import pytest
import torch
import torchvision.transforms.v2.functional as oracle
from helpers.batches import make_batch, make_keys, make_smooth, part_of
from torch import Tensor
from torchvision.transforms import v2

import backbones.random as random
from backbones.augment import (
    alternating_flip,
    chain,
    crop_flip,
    identity,
    random_crop,
    random_flip,
    random_rotation,
    resized_crop,
)
from backbones.augment.geometry import affine
from backbones.errors import InputError


@pytest.mark.parametrize("reflect", [False, True])
def test_a_crop_is_a_window_of_the_padded_image_and_every_window_occurs(reflect: bool) -> None:
    batch, seen = make_batch(400), set()
    cropped = random_crop(2, reflect=reflect)(make_keys(400), batch).images
    for image, crop in zip(batch.images, cropped, strict=True):
        padded = oracle.pad(image, [2], padding_mode="reflect" if reflect else "constant")
        matches = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(oracle.crop(padded, top, left, 8, 6), crop)
        ]
        assert len(matches) == 1
        seen |= set(matches)
    assert len(seen) == 25


def is_flipped(images: Tensor, augmented: Tensor) -> Tensor:
    """[B] bool; an image that is neither flipped nor left alone is an error."""
    flipped = torch.tensor([torch.equal(oracle.hflip(a), b) for a, b in zip(images, augmented, strict=True)])
    same = torch.tensor([torch.equal(a, b) for a, b in zip(images, augmented, strict=True)])
    assert (flipped ^ same).all()
    return flipped


def test_about_half_of_the_images_are_flipped() -> None:
    batch = make_batch(400)
    flipped = is_flipped(batch.images, random_flip()(make_keys(400), batch).images)
    assert 160 < flipped.sum() < 240


def test_an_alternating_flip_shows_each_image_both_ways_in_two_epochs() -> None:
    batch = make_batch(400)
    epochs = [batch._replace(epoch=torch.full_like(batch.epoch, epoch)) for epoch in range(4)]
    found = [
        is_flipped(batch.images, alternating_flip()(make_keys(400, epoch), each).images)
        for epoch, each in enumerate(epochs)
    ]
    assert 160 < found[0].sum() < 240
    assert all(torch.equal(a, ~b) for a, b in pairwise(found))
    part = part_of(epochs[0], slice(9, 20))
    assert torch.equal(is_flipped(part.images, alternating_flip()(make_keys(11), part).images), found[0][9:20])


def test_parts_of_a_chain_draw_numbers_of_their_own() -> None:
    batch, keys = make_batch(50), make_keys(50)
    twice = chain(random_flip(), random_flip())(keys, batch).images
    by_hand = random_flip()(random.fold_in(keys, 1), random_flip()(random.fold_in(keys, 0), batch)).images
    assert torch.equal(twice, by_hand) and not torch.equal(twice, batch.images)


def test_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    batch, keys = make_batch(8), make_keys(8)
    whole = resized_crop(scale=(1.0, 1.0), ratio=(6 / 8, 6 / 8))
    for augment in (identity(), crop_flip(padding=0, flip=False), random_rotation(degrees=0.0), whole):
        assert torch.equal(augment(keys, batch).images, batch.images)
    with pytest.raises(InputError, match="padding is -1; it must be 0 or more"):
        crop_flip(padding=-1)
    with pytest.raises(InputError, match="padding is -3; it must be 0 or more"):
        random_crop(-3)
    with pytest.raises(InputError, match="padding is 6, and images of 8x6 are reflected by at most 5 pixels"):
        alternating_flip(padding=6, reflect=True)(keys, batch)
    alternating_flip(reflect=True)
    assert capsys.readouterr().err == "warning: --augment.reflect has no effect with a padding of 0\n"
    assert alternating_flip(padding=5, reflect=True)(keys, batch).images.shape == batch.images.shape
    with pytest.raises(InputError, match=r"scale is 0.5 to 0.1; give the smallest first"):
        resized_crop(scale=(0.5, 0.1))


@pytest.mark.parametrize("shape", [(3, 16, 12), (1, 9, 20)])
def test_a_resized_crop_is_torchvisions_rounded_to_the_nearest_level(shape: tuple[int, int, int]) -> None:
    images, keys = make_smooth(50, shape), make_keys(50)
    got = resized_crop()(keys, make_batch(50, shape)._replace(images=images)).images
    rectangles = random.rectangle(random.fold_in(keys, 1), *shape[1:], (0.08, 1.0), (3 / 4, 4 / 3))
    for image, crop, *rectangle in zip(images, got, *rectangles, strict=True):
        rectangle = [int(each) for each in rectangle]
        exact = oracle.resized_crop(image.to(torch.float32), *rectangle, size=list(shape[1:]), antialias=True)
        assert (crop - exact).abs().max() < 0.5 + 1e-3
        rounded = oracle.resized_crop(image, *rectangle, size=list(shape[1:]))
        assert (crop.int() - rounded.int()).abs().max() <= 1


def test_rectangles_lie_in_the_image_and_cover_the_ranges() -> None:
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    top, left, rows, columns = (each.double() for each in random.rectangle(make_keys(4000), 200, 200, scale, ratio))
    assert (top >= 0).all() and (top + rows <= 200).all() and (left >= 0).all() and (left + columns <= 200).all()
    area, aspect = rows * columns / 200**2, columns / rows
    steps = torch.linspace(0, 1, 11, dtype=torch.float64)
    uniform = scale[0] + (scale[1] - scale[0]) * steps
    torch.testing.assert_close(area.quantile(steps), uniform, atol=0.02, rtol=0)
    small = aspect[area < 0.7].log()  # all ratios fit: uniform in the logarithm
    wanted = torch.tensor(ratio, dtype=torch.float64).log()
    torch.testing.assert_close(small.quantile(steps), wanted[0] + (wanted[1] - wanted[0]) * steps, atol=0.03, rtol=0)
    for start, length in ((top, rows), (left, columns)):  # positions are uniform among those that fit
        fraction = ((start + 0.5) / (201 - length))[length < 150]
        torch.testing.assert_close(fraction.quantile(steps), steps, atol=0.04, rtol=0)


def test_every_position_in_which_a_rectangle_fits_occurs() -> None:
    top, left, rows, columns = random.rectangle(make_keys(2000), 4, 6, (0.08, 1.0), (1 / 4, 4.0))
    for start, length, size in ((top, rows, 4), (left, columns, 6)):
        found = set(zip(start.tolist(), length.tolist(), strict=True))
        assert found == {(i, n) for n in set(length.tolist()) for i in range(size - n + 1)}


def test_rectangles_are_spread_like_torchvisions() -> None:
    """Which draws a small area a little more often: it throws away large ones that do not fit."""
    torch.manual_seed(0)
    transform, image = v2.RandomResizedCrop(200), torch.zeros(3, 200, 200, dtype=torch.uint8)
    drawn = [transform.make_params([image]) for _ in range(2000)]
    _, _, rows, columns = random.rectangle(make_keys(2000), 200, 200, (0.08, 1.0), (3 / 4, 4 / 3))
    for got, name in ((rows, "height"), (columns, "width")):
        wanted = torch.tensor([float(each[name]) for each in drawn])
        assert abs(got.double().mean() / wanted.mean() - 1) < 0.06
        assert abs(got.double().std() / wanted.std() - 1) < 0.06


def test_a_rectangle_too_long_for_the_image_ends_at_the_border() -> None:
    _, _, rows, columns = random.rectangle(make_keys(500), 10, 100, (0.9, 1.0), (3 / 4, 4 / 3))
    assert (rows == 10).all() and (columns > 10).all() and (columns <= 100).all()


def assert_nearest(got: Tensor, image: Tensor, **options) -> None:
    """Equal to torchvision's affine map, or, where a position is halfway, to that of a position beside it."""
    nearby = torch.stack(
        [oracle.affine(image, translate=[x, y], scale=1.0, **options) for x, y in product((-1e-3, 1e-3), repeat=2)]
    )
    assert (got == nearby).all(dim=1).any(dim=0).all()


@pytest.mark.parametrize("shape", [(3, 16, 12), (1, 9, 20), (3, 33, 33)])
def test_affine_is_torchvisions(shape: tuple[int, int, int]) -> None:
    images = make_batch(40, shape).images
    angle, shear = torch.linspace(-180, 180, 40), torch.linspace(-0.9, 0.9, 40)
    zero, one, radians = torch.zeros(40), torch.ones(40), torch.deg2rad(angle)
    cos, sin = radians.cos(), radians.sin()
    rotated = affine(images, (cos, -sin, zero), (sin, cos, zero))
    sheared = affine(images, (one, shear, shear * (shape[1] / 2)), (zero, one, zero))
    moved = affine(images, (one, zero, torch.arange(40) - 20.0), (zero, one, 20.0 - torch.arange(40)))
    for i, image in enumerate(images):
        assert_nearest(rotated[i], image, angle=-angle[i].item(), shear=[0.0, 0.0])
        degrees = torch.rad2deg(shear[i].atan()).item()
        assert_nearest(sheared[i], image, angle=0.0, shear=[degrees, 0.0], center=[0.0, 0.0])
        moved_by = [20.0 - i, i - 20.0]
        assert torch.equal(moved[i], oracle.affine(image, 0.0, translate=moved_by, scale=1.0, shear=[0.0, 0.0]))


def test_a_rotation_is_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, numbers = make_batch(21, (3, 17, 17)), torch.arange(21) / 20
    monkeypatch.setattr(random, "uniform", lambda keys: numbers)
    rotated = random_rotation(degrees=90.0)(make_keys(21), batch).images
    for image, got, number in zip(batch.images, rotated, numbers, strict=True):
        angle = 180 * number.item() - 90
        assert_nearest(got, image, angle=-angle, shear=[0.0, 0.0])
        assert (got == oracle.rotate(image, angle)).float().mean() > 0.99
    assert torch.equal(rotated[-1], torch.rot90(batch.images[-1], 1, (1, 2)))


def test_a_resized_crop_of_a_large_image_does_not_overflow() -> None:
    batch = make_batch(1, (1, 1500, 1500))
    white = torch.full_like(batch.images, 255)
    assert (resized_crop()(make_keys(1), batch._replace(images=white)).images == 255).all()
