import dataclasses
import re
from collections.abc import Callable

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from helpers.batches import check_same, make_batch, make_keys, part_of
from helpers.steps import train
from torch import Tensor
from torchvision.transforms import v2

import backbones.distributed as distributed
import backbones.random as random
from backbones.augment import AUGMENTS, chain, cutmix, mixup, mixup_cutmix, random_flip, repeated
from backbones.augment.mix import make_beta
from backbones.component import use
from backbones.data import digits, make_batches
from backbones.errors import InputError
from backbones.optim.schedule import constant
from backbones.types import CPU, Batch
from experiments.digits import digits_vit_tiny

MIXING = ["mixup", "cutmix", "mixup-cutmix"]
SMALL = dataclasses.replace(
    digits_vit_tiny,
    model=digits_vit_tiny.model.replace(width=32, depth=1, heads=2, mlp_width=64, dropout=0.0),
    batch_size=32,
    steps=10,
    compile="off",
)


def make(name: str) -> Callable[[Tensor, Batch], Batch]:
    return use(AUGMENTS[name]).make(num_classes=10, device=CPU)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 8.0])
def test_coefficients_have_the_beta_distribution(alpha: float) -> None:
    numbers = make_beta(alpha, CPU)(make_keys(20_000))
    assert numbers.min() >= 0 and numbers.max() <= 1
    wanted = scipy.stats.beta(alpha, alpha)
    lower = numbers[numbers < 0.5].numpy()  # float32 rounds many of the others to 1
    assert abs(len(lower) - 10_000) < 300
    assert scipy.stats.kstest(lower, lambda x: 2 * wanted.cdf(x)).pvalue > 0.01
    assert abs(numbers.double().var() / wanted.var() - 1) < 0.05


def pairs(batch: Batch) -> list[Batch]:
    return [part_of(batch, slice(i, i + 2)) for i in range(0, len(batch.labels), 2)]


def test_mixup_is_torchvisions_with_the_coefficient_of_each_pair() -> None:
    batch, keys = make_batch(40), make_keys(40)
    got = mixup(num_classes=10, alpha=0.7)(keys, batch)
    shares = make_beta(0.7, CPU)(random.fold_in(keys, 1)[::2])
    for pair, mixed, share in zip(pairs(batch), pairs(got), shares, strict=True):
        oracle = v2.MixUp(num_classes=10)
        oracle.make_params = lambda inputs, share=share: {"lam": share.item()}
        images, targets = oracle(pair.images.float(), pair.labels)
        torch.testing.assert_close(mixed.images, images)
        torch.testing.assert_close(mixed.targets, targets)
        assert torch.equal(mixed.labels, targets.argmax(dim=1))
    assert (shares > 0.5).any() and (shares < 0.5).any()


def test_cutmix_is_torchvisions_with_the_rectangle_of_each_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, keys = make_batch(60, (3, 16, 12)), make_keys(60)
    got = cutmix(num_classes=10)(keys, batch)
    own = random.fold_in(keys, 1)[::2]
    coefficients = make_beta(1.0, CPU)(random.fold_in(own, 0))
    rows, columns = random.randint(random.fold_in(own, 1), 16), random.randint(random.fold_in(own, 2), 12)
    for i, (pair, mixed) in enumerate(zip(pairs(batch), pairs(got), strict=True)):
        oracle, centre = v2.CutMix(num_classes=10), {16: rows[i : i + 1], 12: columns[i : i + 1]}
        oracle._dist.sample = lambda shape, i=i: coefficients[i]
        monkeypatch.setattr(torch, "randint", lambda high, size, centre=centre: centre[high])
        images, targets = oracle(pair.images.float(), pair.labels)
        assert torch.equal(mixed.images, images)
        torch.testing.assert_close(mixed.targets, targets)
        assert torch.equal(mixed.labels[0], targets[0].argmax()) or targets[0].amax() == 0.5
    assert len(got.targets.amax(dim=1).unique()) > 15


def test_half_of_the_pairs_get_cutmix() -> None:
    """There every pixel is of one of the two images; elsewhere the pixels agree on one coefficient."""
    batch, keys = make_batch(400, (1, 8, 8)), make_keys(400)
    constant = torch.tensor([0, 200], dtype=torch.uint8).repeat(200)[:, None, None, None].expand(-1, 1, 8, 8)
    batch = batch._replace(images=constant)
    got = mixup_cutmix(num_classes=10)(keys, batch)
    share = got.images[::2] / 200  # of the second image of the pair, pixel by pixel
    is_cutmix = ((share == 0) | (share == 1)).flatten(1).all(dim=1)
    is_mixup = (share == share[:, :, :1, :1]).flatten(1).all(dim=1)
    assert (is_cutmix | is_mixup).all() and 70 < is_cutmix.sum() < 130
    second = F.one_hot(batch.labels[1::2], 10).bool()
    torch.testing.assert_close(got.targets[::2][second], share.mean(dim=(1, 2, 3)))
    alone = cutmix(num_classes=10)(make_keys(400, 5), batch).images[::2] / 200
    assert abs(share[is_cutmix].mean() - alone.mean()) < 0.08  # which pairs get it does not depend on the coefficient


@pytest.mark.parametrize("name", MIXING)
def test_targets_are_probabilities_and_labels_dominate(name: str) -> None:
    batch = make_batch(100, (3, 16, 12))
    got = make(name)(make_keys(100), batch)
    assert got.images.dtype == got.targets.dtype == torch.float32
    assert got.images.min() >= 0 and got.images.max() <= 255
    torch.testing.assert_close(got.targets.sum(dim=1), torch.ones(100))
    assert torch.equal(got.targets.gather(1, got.labels[:, None])[:, 0], got.targets.amax(dim=1))
    assert (got.targets.amax(dim=1) >= 0.5).all() and not torch.equal(got.labels, batch.labels)
    for field in ("weight", "index", "epoch"):
        assert torch.equal(getattr(got, field), getattr(batch, field))


def test_targets_are_mixed_again() -> None:
    batch, keys = make_batch(8), make_keys(8)
    once = mixup(num_classes=10)(random.fold_in(keys, 0), batch)
    twice = chain(mixup(num_classes=10), mixup(num_classes=10))(keys, batch)
    by_hand = mixup(num_classes=10)(random.fold_in(keys, 1), batch._replace(images=once.images))
    torch.testing.assert_close(twice.images, by_hand.images)
    share = by_hand.targets.gather(1, batch.labels[:, None])
    torch.testing.assert_close(twice.targets, share * once.targets + (1 - share) * once.targets[torch.arange(8) ^ 1])


@pytest.mark.parametrize("name", [*MIXING, "repeated"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_mix_as_one_process(name: str, world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    augment, source, key = make(name), digits().train, random.key(3)

    def augmented() -> Batch:
        batch = make_batches(source, seed=0, batch_size=64, device=CPU)(44)  # over the end of an epoch
        return augment(random.sample_keys(key, 44, batch.index, batch.epoch), batch)

    whole = augmented()
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)
    for rank in range(world_size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        check_same(augmented(), part_of(whole, slice(rank * 64 // world_size, (rank + 1) * 64 // world_size)))


def test_rows_are_repeated_and_then_augmented_differently() -> None:
    batch, keys = make_batch(60, (3, 16, 12)), make_keys(60)
    got = repeated(times=3)(keys, batch)
    check_same(got, part_of(batch, torch.arange(60) // 3 * 3))
    flipped = chain(repeated(times=3), random_flip())(keys, batch).images
    copies = flipped.unflatten(0, (20, 3))
    assert ((copies != copies[:, :1]).flatten(2).any(dim=2)).any(dim=1).sum() > 10  # three of four, on average
    check_same(repeated(times=1)(keys, batch), batch)
    mixed = chain(mixup(num_classes=10), repeated(times=2))(keys, batch)
    assert torch.equal(mixed.targets[::2], mixed.targets[1::2])


@pytest.mark.parametrize(("augment", "size"), [(mixup(num_classes=10), 2), (repeated(times=4), 4)])
def test_rows_that_are_left_over_are_an_error(augment, size: int) -> None:
    message = f"got 33 images, wanted a multiple of {size}: choose --batch-size so that each process gets a multiple"
    with pytest.raises(InputError, match=re.escape(message)):
        augment(make_keys(33), make_batch(33))


@pytest.mark.parametrize("compile", ["off", "on"])
def test_a_run_with_rows_left_over_is_one_clear_error(compile: str) -> None:
    experiment = dataclasses.replace(SMALL, augment=use(mixup), batch_size=33, compile=compile)
    with pytest.raises(InputError, match="got 33 images, wanted a multiple of 2"):
        program = experiment.make()
        program.train_step(program.state, program.batches(0))


@pytest.mark.parametrize("augment", [use(mixup, alpha=1.0), use(cutmix, padding=1)])
def test_a_training_on_mixed_targets(augment) -> None:
    """The loss of its first step is that of the mixed images under the mixed targets, and it falls."""
    experiment = dataclasses.replace(SMALL, augment=augment, steps=60, schedule=use(constant))
    program, info = experiment.make(), digits().info
    batch = program.batches(0)
    mixed = augment.make(num_classes=10)(random.sample_keys(program.state.key, 0, batch.index, batch.epoch), batch)
    mean, std = (torch.tensor(each)[:, None, None] for each in (info.mean, info.std))
    model = experiment.make_model(info)
    logits, _ = model.apply(program.state.params, program.state.model_state, (mixed.images - mean) / std, train=True)
    wanted = -(mixed.targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert (mixed.targets.amax(dim=1) < 0.9).any()
    _, history = train(experiment, num_steps=60)
    losses = [metrics["loss"].item() for metrics in history]
    assert losses[0] == pytest.approx(wanted.item(), rel=1e-5)
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_what_a_pair_gets_and_how_much_of_it_is_chosen(alpha: float) -> None:
    """The weights of mixup are those of Beta(alpha, alpha); what is exchanged by CutMix follows its alpha."""
    images = torch.tensor([0, 200], dtype=torch.uint8).repeat(1000)[:, None, None, None].expand(-1, 1, 16, 16)
    batch, keys = make_batch(2000, (1, 16, 16))._replace(images=images), make_keys(2000)
    mixed = mixup_cutmix(num_classes=10, cutmix_probability=0.0, mixup_alpha=alpha)(keys, batch).images / 200
    assert (mixed == mixed[:, :, :1, :1]).all()
    assert scipy.stats.kstest(mixed[::2, 0, 0, 0].numpy(), scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    cut = mixup_cutmix(num_classes=10, cutmix_probability=1.0, cutmix_alpha=alpha)(keys, batch).images / 200
    assert ((cut == 0) | (cut == 1)).all()
    alone = cutmix(num_classes=10, alpha=alpha)(make_keys(2000, 5), batch).images / 200
    shares = [each[::2].mean(dim=(1, 2, 3)).numpy() for each in (cut, alone)]
    assert scipy.stats.ks_2samp(*shares).pvalue > 1e-3
    wide = cutmix(num_classes=10, alpha=50.0)(make_keys(2000, 5), batch).images / 200
    assert scipy.stats.ks_2samp(shares[0], wide[::2].mean(dim=(1, 2, 3)).numpy()).pvalue < 1e-3
