from collections.abc import Callable

import pytest
import torch
import torchvision.transforms.v2.functional as oracle
from helpers.batches import make_batch, make_keys, make_smooth
from torch import Tensor

import backbones.random as random
from backbones.augment import color, color_jitter, random_grey

IMAGES = torch.cat([make_smooth(20), make_batch(20, (3, 16, 12)).images])
GREY = IMAGES[:, :1]
FLAT = torch.tensor([0, 7, 255], dtype=torch.uint8)[:, None, None].expand(3, 16, 12)
EDGES = torch.stack([FLAT, FLAT.flip(0), FLAT.clamp(max=7), torch.full_like(FLAT, 255)])
"""No contrast within a channel, none between channels, black and white."""


def levels_apart(got: Tensor, images: Tensor, transform: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Distance of each pixel from torchvision's, image by image."""
    wanted = torch.stack([transform(image, i) for i, image in enumerate(images)])
    assert got.dtype == wanted.dtype == torch.uint8
    return (got.int() - wanted.int()).abs()


FACTORS, TURNS = torch.linspace(0, 2, 40), torch.linspace(-0.5, 0.5, 40)
OPERATIONS = {
    "equalize": (lambda x: color.lookup(x, color.equalize(x)), lambda x, i: oracle.equalize(x), 0),
    "autocontrast": (lambda x: color.lookup(x, color.autocontrast(x)), lambda x, i: oracle.autocontrast(x), 0.02),
    "grey": (color.grey, lambda x, i: oracle.rgb_to_grayscale(x), 0.01),
    "brightness": (color.black, lambda x, i: oracle.adjust_brightness(x, FACTORS[i].item()), 0.03),
    "saturation": (color.grey, lambda x, i: oracle.adjust_saturation(x, FACTORS[i].item()), 0.03),
    "sharpness": (color.smooth, lambda x, i: oracle.adjust_sharpness(x, FACTORS[i].item()), 0.03),
    "contrast": (color.mean_grey, lambda x, i: oracle.adjust_contrast(x, FACTORS[i].item()), 0.2),
    "hue": (lambda x: color.turn_hue(x, TURNS[: len(x)]), lambda x, i: oracle.adjust_hue(x, TURNS[i].item()), 0.1),
}
"""Name -> ours (of a blend, its base), torchvision's, and the share of pixels that its float arithmetic rounds to a
neighbouring level: contrast blends with the rounded mean, as PIL does, and hue rounds to the nearest level."""


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("images", [IMAGES, GREY, EDGES], ids=["color", "grey", "edges"])
def test_an_operation_is_torchvisions(images: Tensor, name: str) -> None:
    ours, theirs, share = OPERATIONS[name]
    got = ours(images)
    if name in ("brightness", "saturation", "sharpness", "contrast"):
        got = color.blend(images, got, FACTORS[: len(images)])
    apart = levels_apart(got, images, theirs)
    assert apart.max() <= (share > 0) and apart.float().mean() <= share


def test_what_leaves_an_image_exactly_as_it_is() -> None:
    one, none = torch.ones(len(IMAGES)), torch.zeros(len(IMAGES))
    for base in (color.black, color.mean_grey, color.grey, color.smooth):
        assert torch.equal(color.blend(IMAGES, base(IMAGES), one), IMAGES)
    for turns in (none, one, -one):
        assert torch.equal(color.turn_hue(IMAGES, turns), IMAGES)
    for images in (IMAGES, GREY):
        table = torch.arange(256, dtype=torch.uint8).expand(len(images), images.shape[1], 256)
        assert torch.equal(color.lookup(images, table), images)


def test_color_jitter_is_torchvisions_in_its_order() -> None:
    keys, batch = make_keys(40), make_batch(40)._replace(images=IMAGES)
    got = color_jitter(brightness=0.5, contrast=1.5, saturation=0.3, hue=0.2)(keys, batch).images
    numbers = [random.uniform(random.fold_in(random.fold_in(keys, 1), i)) for i in range(4)]
    factors = 0.5 + numbers[0], 2.5 * numbers[1], 0.7 + 0.6 * numbers[2], 0.4 * numbers[3] - 0.2

    def jitter(image: Tensor, i: int) -> Tensor:
        brightness, contrast, saturation, hue = (each[i].item() for each in factors)
        image = oracle.adjust_contrast(oracle.adjust_brightness(image, brightness), contrast)
        return oracle.adjust_hue(oracle.adjust_saturation(image, saturation), hue)

    apart = levels_apart(got, IMAGES, jitter)
    assert apart.float().mean() < 0.5 and apart.float().quantile(0.99) <= 4  # roundings of four steps add up


def test_each_part_of_color_jitter_can_be_left_out() -> None:
    keys, batch = make_keys(40), make_batch(40)._replace(images=IMAGES)
    none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    assert torch.equal(color_jitter(**none)(keys, batch).images, IMAGES)
    alone = [color_jitter(**{**none, name: 0.5})(keys, batch).images for name in none]
    assert all(not torch.equal(a, b) for i, a in enumerate(alone) for b in [IMAGES, *alone[:i]])


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_some_images_become_grey(probability: float) -> None:
    images = IMAGES.repeat(10, 1, 1, 1)
    got = random_grey(probability=probability)(make_keys(400), make_batch(400)._replace(images=images)).images
    grey = torch.stack([oracle.rgb_to_grayscale(image, num_output_channels=3) for image in images])
    is_grey = (got.int() - grey.int()).abs().flatten(1).amax(dim=1) <= 1
    assert (is_grey | (got == images).flatten(1).all(dim=1)).all()
    assert abs(is_grey.float().mean() - probability) < 0.06
