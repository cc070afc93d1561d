from collections.abc import Iterator

import pytest
import torch
from helpers.batches import make_batch, make_keys, make_smooth
from torch import Tensor
from torchvision.transforms import v2

from backbones.augment import auto_augment, rand_augment, trivial_augment
from backbones.augment.autoaugment import CIFAR10
from backbones.augment.policy import AUTO, RAND, WIDE, Op, Strength, apply_ops

NAMES = ["Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"]
NAMES += ["Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert"]
"""Of torchvision, in the order of `Op`."""

ORACLES = {"auto": (v2.AutoAugment, AUTO), "rand": (v2.RandAugment, RAND), "wide": (v2.TrivialAugmentWide, WIDE)}
IMAGES = torch.cat([make_smooth(4, (3, 33, 32)), make_batch(2, (3, 33, 32)).images])

DIFFERENT = dict.fromkeys(("ShearX", "ShearY"), 0.1) | {"Rotate": 0.01, "Solarize": 0.01}
"""Share of pixels that may be other ones: positions halfway between two pixels, and the level that is the threshold."""
ROUNDED = {"Contrast": 0.35, "Brightness": 0.25, "Color": 0.1, "Sharpness": 0.02, "AutoContrast": 0.01}
"""Share of pixels that may be on a neighbouring level; see test_color.py."""


def torchvisions(
    transform: v2.Transform, name: str, level: int, sign: int, strength: Strength, image: Tensor
) -> Tensor:
    magnitudes_of, signed = {"Identity": (lambda *_: None, False), **transform._AUGMENTATION_SPACE}[name]
    magnitudes = magnitudes_of(strength.levels, *image.shape[1:])
    magnitude = 0.0 if magnitudes is None else float(magnitudes[level]) * (sign if signed else 1)
    if name.startswith("Translate"):
        magnitude = round(magnitude, 3)  # 32 pixels at level 15 of 30 are 16: in float32, 15.999999, which is cut off
    return transform._apply_image_or_video_transform(image, name, magnitude, "nearest", transform._fill)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("space", ORACLES)
def test_every_operation_at_every_level_is_torchvisions(space: str, name: str) -> None:
    make, strength = ORACLES[space]
    if name not in ("Identity", "Invert"):  # in no space but AutoAugment's, but always the same
        assert name in make._AUGMENTATION_SPACE
    transform = make() if name in make._AUGMENTATION_SPACE else v2.AutoAugment()
    levels = range(strength.levels) if space == "auto" else range(0, strength.levels, 3)
    cases = [(level, sign, i) for level in levels for sign in (-1, 1) for i in range(len(IMAGES))]
    level, sign, rows = torch.tensor(cases).unbind(dim=1)
    got = apply_ops(IMAGES[rows], torch.full_like(level, NAMES.index(name)), level, sign, strength)
    wanted = torch.stack([torchvisions(transform, name, level, sign, strength, IMAGES[i]) for level, sign, i in cases])
    apart = (got.int() - wanted.int()).abs().unflatten(0, (-1, len(IMAGES)))
    assert apart.max() <= 1 or name in DIFFERENT
    assert ((apart > 0).float().mean(dim=(1, 2, 3, 4)) <= DIFFERENT.get(name, ROUNDED.get(name, 0))).all()
    unchanged = name == "Identity"
    assert torch.equal(got, IMAGES[rows]) == unchanged


def test_each_image_has_an_operation_of_its_own() -> None:
    images, op = make_batch(15, (3, 16, 12)).images, torch.arange(15)
    level, sign = torch.arange(15) * 2, torch.tensor([-1, 1, 1]).repeat(5)
    together = apply_ops(images, op, level, sign, RAND)
    for i in range(15):
        row = slice(i, i + 1)
        assert torch.equal(together[row], apply_ops(images[row], op[row], level[row], sign[row], RAND))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, Tensor, Tensor, Strength]]]:
    """What policies have drawn: op, level, sign and strength of each layer."""
    layers = []

    def record(images: Tensor, *draws) -> Tensor:
        layers.append(draws)
        return apply_ops(images, *draws)

    for module in ("policy", "autoaugment"):
        monkeypatch.setattr(f"backbones.augment.{module}.apply_ops", record)
    return layers


def frequencies(values: Tensor, number: int) -> Tensor:
    return torch.bincount(values, minlength=number) / len(values)


def assert_independent(*values: Tensor) -> None:
    assert torch.corrcoef(torch.stack(values).double()).triu(1).abs().max() < 0.05


def assert_uniform(values: Tensor, number: int) -> None:
    assert ((frequencies(values, number) * number - 1).abs() < 0.3).all() and values.max() == number - 1


def test_rand_augment_draws_each_operation_but_inversion(drawn) -> None:
    rand_augment(num_ops=3, magnitude=7)(make_keys(6000), make_batch(6000, (1, 4, 4)))
    assert len(drawn) == 3
    for op, level, sign, strength in drawn:
        assert_uniform(op, 14)
        assert_uniform((sign + 1) // 2, 2)
        assert (level == 7).all() and strength is RAND
    assert_independent(*(values for op, _, sign, _ in drawn for values in (op, sign)))


def test_trivial_augment_draws_one_operation_at_one_of_31_levels(drawn) -> None:
    trivial_augment()(make_keys(6000), make_batch(6000, (1, 4, 4)))
    (op, level, sign, strength), *others = drawn
    assert not others and strength is WIDE
    assert_uniform(op, 14)
    assert_uniform(level, 31)
    assert_uniform((sign + 1) // 2, 2)
    assert_independent(op, level, sign)


def test_the_policy_for_cifar10_is_torchvisions() -> None:
    table = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)._policies
    ours = [tuple((NAMES[op], tenths / 10, level) for op, tenths, level in pair) for pair in CIFAR10]
    assert ours == [tuple((op, probability, level or 0) for op, probability, level in pair) for pair in table]


def test_auto_augment_draws_the_pairs_of_its_policy(drawn) -> None:
    auto_augment()(make_keys(20_000), make_batch(20_000, (1, 4, 4)))
    assert len(drawn) == 2
    for i, (op, level, sign, strength) in enumerate(drawn):
        assert strength is AUTO
        wanted = torch.zeros(15)
        for pair in CIFAR10:
            wanted[pair[i][0]] += pair[i][1] / 250
        wanted[Op.IDENTITY] = 1 - wanted.sum()
        torch.testing.assert_close(frequencies(op, 15), wanted, atol=0.01, rtol=0)
        assert_uniform((sign + 1) // 2, 2)
        cases = {(pair[i][0], pair[i][2]) for pair in CIFAR10 if pair[i][1]}
        assert {each for each in zip(op.tolist(), level.tolist(), strict=True) if each[0] != Op.IDENTITY} == cases
    (first, _, sign_1, _), (second, _, sign_2, _) = drawn
    assert_independent(*((op == Op.IDENTITY) for op in (first, second)), sign_1, sign_2)
    together = {(a, b) for (a, p, _), (b, q, _) in CIFAR10 if p and q}
    got = set(zip(first.tolist(), second.tolist(), strict=True))
    assert {pair for pair in got if Op.IDENTITY not in pair} == together


@pytest.mark.parametrize("augment", [rand_augment(num_ops=2), trivial_augment(), auto_augment()])
def test_layers_are_applied_one_after_the_other(augment, drawn) -> None:
    batch = make_batch(30, (3, 16, 12))
    got = augment(make_keys(30), batch).images
    wanted = batch.images
    for op, level, sign, strength in drawn:
        wanted = apply_ops(wanted, op, level, sign, strength)
    assert torch.equal(got, wanted)
