"""What holds for every augmentation."""

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from helpers.batches import check_augment, check_same, compiled, make_batch, make_keys
from helpers.runs import ROOT

import backbones.random as random
from backbones.augment import AUGMENTS, Augment, chain, mixup, random_erasing, trivial_augment
from backbones.augment.geometry import crop_flip, random_crop, random_flip, resized_crop
from backbones.component import use
from backbones.errors import InputError
from backbones.types import CPU

OF_UINT8 = {"resized-crop", "color-jitter", "random-grey", "rand-augment", "trivial-augment", "auto-augment"}
BY_KEYS = sorted(set(AUGMENTS) - {"identity", "alternating-flip", "repeated"})


def make(name: str, **options: int) -> Augment:
    """As an experiment makes it."""
    options |= {"size": 4} if name == "cutout" else {}  # less than the image
    return use(AUGMENTS[name], **options).make(num_classes=10, device=CPU)


LONG = ("rand-augment", "auto-augment")  # two layers of operations; trivial-augment has one


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in AUGMENTS])
def test_the_same_on_any_number_of_ranks_and_compiled(name: str) -> None:
    check_augment(make(name), make_batch(16))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trivial-augment", "mixup-cutmix"])
def test_compiled_by_inductor_is_eager(name: str) -> None:
    batch, keys = make_batch(16), make_keys(16)
    augment = make(name)
    check_same(compiled(augment, "inductor")(keys, batch), augment(keys, batch))


@pytest.mark.parametrize("name", AUGMENTS)
def test_grey_images_and_images_of_one_pixel(name: str) -> None:
    for shape in ((1, 8, 6), (4, 5, 5), (3, 2, 1), (1, 1, 1)):
        batch = make_batch(8, shape)
        assert make(name)(make_keys(8), batch).images.shape == batch.images.shape


@pytest.mark.parametrize("name", BY_KEYS)
def test_another_key_gives_other_pixels(name: str) -> None:
    batch, augment = make_batch(16), make(name)
    assert not torch.equal(augment(make_keys(16, 1), batch).images, augment(make_keys(16, 2), batch).images)


@pytest.mark.parametrize("name", sorted(set(AUGMENTS) - {"identity", "resized-crop", "crop-flip", "alternating-flip"}))
def test_crop_and_flip_come_first(name: str) -> None:
    """As the parts of a chain; only repetition comes before them."""
    batch, keys = make_batch(16), make_keys(16)
    crop_keys, crop = random.fold_in(keys, int(name == "repeated")), chain(random_crop(2), random_flip())
    together = make(name, padding=2, flip=True)(keys, batch)
    if name == "repeated":
        check_same(together, crop(crop_keys, make(name)(keys, batch)))
    else:
        check_same(together, make(name)(keys, crop(crop_keys, batch)))


@pytest.mark.parametrize(
    "make_augment", [partial(crop_flip, padding=0), partial(resized_crop, scale=(1.0, 1.0), ratio=(1.0, 1.0))]
)
def test_half_of_the_images_are_flipped_where_asked_for(make_augment: Callable[..., Augment]) -> None:
    batch, keys = make_batch(200, (3, 6, 6)), make_keys(200)
    mirrored = batch.images.flip(3)
    for flip in (False, True):
        images = make_augment(flip=flip)(keys, batch).images
        is_flipped = (images == mirrored).flatten(1).all(dim=1)
        assert (is_flipped | (images == batch.images).flatten(1).all(dim=1)).all()
        assert is_flipped.sum() in range(70, 130) if flip else not is_flipped.any()


def test_the_table_in_docs_has_them_all() -> None:
    text = (ROOT / "docs" / "augment.md").read_text()
    assert re.findall(r"^\| `(\S+)` \|", text, flags=re.MULTILINE) == [name for name in AUGMENTS if name != "identity"]


@pytest.mark.parametrize("name", sorted(OF_UINT8))
def test_levels_cannot_be_looked_up_in_mixed_images(name: str) -> None:
    batch, keys = make_batch(16), make_keys(16)
    with pytest.raises(InputError, match=r"got torch.float32 images, wanted uint8: in a chain, put what mixes"):
        chain(make("mixup"), make(name))(keys, batch)
    mixed_last = chain(trivial_augment(), mixup(num_classes=10), random_erasing())(keys, batch)
    assert mixed_last.images.dtype == torch.float32


@pytest.mark.parametrize("name", ["mixup", "cutmix", "mixup-cutmix", "auto-augment"])
def test_an_augmentation_for_another_device_is_one_clear_error(name: str) -> None:
    """As one of one's own is that does not pass its device on."""
    augment = use(AUGMENTS[name]).make(num_classes=10, device="meta")
    with pytest.raises(InputError, match="was made for meta, and the batch is on cpu; make it with the device that"):
        augment(make_keys(8), make_batch(8))
