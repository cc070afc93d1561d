from collections.abc import Iterable
from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch

import backbones.distributed as distributed
import backbones.random as random
from backbones.data import Sampling, Source, eval_batches, in_memory, make_batches
from backbones.data.batches import uniform_sequence
from backbones.data.image_files.dataset import NUM_SAMPLED
from backbones.data.source import channel_statistics, read_some
from backbones.errors import InputError
from backbones.random import Stream
from backbones.types import CPU


def make_source(size: int) -> Source:
    images = torch.arange(size, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    split = images, torch.arange(size)
    return in_memory(split, split, tuple(str(k) for k in range(size)), CPU).train


IMBALANCED = make_source(20)._replace(labels=torch.tensor([4, 0, 0, 1, 0, 0, 2, 0, 0, 4, 0, 1, 0, 0, 0, 4, 4, 0, 1, 0]))
"""12 samples of class 0, 3 of class 1, 1 of class 2, none of class 3, 4 of class 4."""


def run_indices(
    size: int, batch_size: int, num_steps: int, seed: int = 0, sampling: Sampling = "uniform", whole: bool = False
) -> list[list[int]]:
    source = IMBALANCED if sampling == "balanced" else make_source(size)
    batches = make_batches(source, seed=seed, batch_size=batch_size, device=CPU, sampling=sampling, whole=whole)
    return [batches(step).index.tolist() for step in range(num_steps)]


both = pytest.mark.parametrize("sampling", ["uniform", "balanced"])


def flatten(lists: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


@pytest.mark.parametrize("batch_size", [7, 20, 45])  # does not divide; divides; holds more than two epochs
def test_every_epoch_is_a_permutation_and_nothing_is_dropped(batch_size: int) -> None:
    row = flatten(run_indices(20, batch_size, 200 // batch_size + 1))
    epochs = [row[i : i + 20] for i in range(0, 160, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


@both
def test_order_depends_on_the_seed_alone(sampling: Sampling) -> None:
    run = partial(run_indices, sampling=sampling)
    assert run(20, 7, 5) == run(20, 7, 5)
    assert run(20, 7, 5) != run(20, 7, 5, seed=1)
    assert run(20, 5, 8)[6] == flatten(run(20, 1, 40)[30:35])  # whatever the batch size


@both
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_same_batches(world_size: int, sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = run_indices(20, 8, 10, sampling=sampling)
    shares = []
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)
    for rank in range(world_size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(run_indices(20, 8, 10, sampling=sampling))
        assert run_indices(20, 8, 10, sampling=sampling, whole=True) == alone
    assert [flatten(parts) for parts in zip(*shares, strict=True)] == alone


def test_batch_holds_the_samples_of_its_indices() -> None:
    batch = make_batches(make_source(20), seed=0, batch_size=8, device=CPU)(3)
    assert batch.targets is None and batch.weight.tolist() == [1.0] * 8
    assert batch.labels.tolist() == batch.index.tolist() == batch.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 12, 19])
def test_evaluation_counts_each_sample_once(world_size: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)
    for rank in range(world_size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        batches = list(eval_batches(make_source(size), batch_size=8, device=CPU))
        assert len({batch.labels.shape for batch in batches}) == 1  # nothing is compiled twice
        assert len(batches[0].labels) * world_size < min(8, size) + world_size  # and little is padding
        counted += [label for batch in batches for label in batch.labels[batch.weight == 1].tolist()]
    assert sorted(counted) == list(range(size))


def test_epoch_order_is_pinned() -> None:
    """A changed order would silently change every published run."""
    index, epoch = uniform_sequence(torch.zeros(10), 0)(0, 10)
    assert epoch.tolist() == [0] * 10 and index.tolist() == [0, 8, 3, 7, 2, 5, 9, 6, 4, 1]
    keys = random.sample_keys(random.key(0), 5, torch.tensor([7, 7]), torch.tensor([0, 1]))
    assert keys.tolist() == [-217734071595851988, -219491766359874872]


@both
def test_any_step_can_be_asked_for_in_any_order(sampling: Sampling) -> None:
    batches = make_batches(IMBALANCED, seed=0, batch_size=7, device=CPU, sampling=sampling)
    forward = [batches(step).index.tolist() for step in range(6)]
    assert [batches(step).index.tolist() for step in reversed(range(6))] == forward[::-1]


def test_a_source_gets_a_key_for_each_sample_and_step() -> None:
    source, seen = make_source(20), {}

    def read(index: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        seen[tuple(index.tolist())] = keys
        return source.read(index, keys)

    batches = make_batches(source._replace(read=read), seed=3, batch_size=8, device=CPU)
    first, again = batches(4), batches(4)
    key = random.fold_in(random.key(3), Stream.READ)
    expected = random.fold_in(random.fold_in(key, 4), first.index + 2**32 * first.epoch)
    assert torch.equal(seen[tuple(again.index.tolist())], expected)
    of_augmentation = random.sample_keys(random.key(3), 4, first.index, first.epoch)
    assert len(set(expected.tolist()) | set(of_augmentation.tolist())) == 16


@pytest.mark.parametrize(("sampling", "batch_size"), [("balanced", 40), ("uniform", 50)])
def test_a_sample_that_a_batch_has_twice_has_two_keys(sampling: Sampling, batch_size: int) -> None:
    keys = []

    def read(index: torch.Tensor, read_keys: torch.Tensor) -> torch.Tensor:
        keys.append(read_keys)
        return IMBALANCED.read(index, read_keys)

    source = IMBALANCED._replace(read=read)
    batch = make_batches(source, seed=0, batch_size=batch_size, device=CPU, sampling=sampling)(3)
    keys.append(random.sample_keys(random.key(0), 3, batch.index, batch.epoch))
    assert len(batch.index.unique()) < batch_size and [len(each.unique()) for each in keys] == [batch_size] * 2


def test_the_images_for_the_channel_statistics_are_at_equal_distances() -> None:
    assert read_some(lambda index, read_keys: index, 1025, 513).tolist() == [*range(0, 1025, 2)]
    assert NUM_SAMPLED == 512


def test_channel_statistics_are_those_of_numpy() -> None:
    images = torch.randint(0, 256, (50, 3, 5, 7), generator=random.generator(0)).to(torch.uint8)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, images.numpy().mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, images.numpy().std(axis=(0, 2, 3)), rtol=1e-6)


def test_a_batch_knows_the_epoch_of_each_sample() -> None:
    batches = make_batches(make_source(10), seed=0, batch_size=8, device=CPU)
    epochs = [batches(step).epoch.tolist() for step in range(3)]
    assert epochs == [[0] * 8, [0] * 2 + [1] * 6, [1] * 4 + [2] * 4]


def test_balanced_rounds_hold_each_class_once() -> None:
    """In an order that differs from round to round; the class without samples is left out."""
    batches = make_batches(IMBALANCED, seed=0, batch_size=4, device=CPU, sampling="balanced")
    rounds = [batches(step).labels.tolist() for step in range(30)]
    assert all(sorted(labels) == [0, 1, 2, 4] for labels in rounds)
    assert len({tuple(labels) for labels in rounds}) > 10


@pytest.mark.parametrize("label", [0, 1, 2, 4])
def test_balanced_epochs_of_a_class_hold_each_of_its_samples_once(label: int) -> None:
    batches = make_batches(IMBALANCED, seed=0, batch_size=6, device=CPU, sampling="balanced")
    drawn = [
        (index, epoch)
        for batch in map(batches, range(32))
        for index, of, epoch in zip(*(each.tolist() for each in (batch.index, batch.labels, batch.epoch)), strict=True)
        if of == label
    ]
    assert len(drawn) == 32 * 6 / 4
    members = (IMBALANCED.labels == label).nonzero().flatten().tolist()
    epochs = [drawn[i : i + len(members)] for i in range(0, len(drawn), len(members))]
    for number, epoch in enumerate(epochs):
        assert sorted(epoch) == [(index, number) for index in members]
    assert len(members) == 1 or len({tuple(index for index, _ in epoch) for epoch in epochs}) > 1


def test_balanced_order_is_pinned() -> None:
    """A changed order would silently change every published run."""
    batches = make_batches(IMBALANCED, seed=0, batch_size=12, device=CPU, sampling="balanced")
    assert batches(0).index.tolist() == [14, 6, 16, 11, 6, 2, 3, 9, 18, 13, 0, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images / 255, r"images of torch.float32 \[5, 3, 4, 4\]; wanted torch.uint8 \[5, 3, 4, 4\]"),
        (lambda images: images[..., :3], r"images of torch.uint8 \[5, 3, 4, 3\]; wanted torch.uint8 \[5, 3, 4, 4\]"),
        (lambda images: images[:2], r"images of torch.uint8 \[2, 3, 4, 4\]; wanted torch.uint8 \[5, 3, 4, 4\]"),
    ],
)
def test_images_of_a_source_of_ones_own_are_checked(change, message: str) -> None:
    source = make_source(20)
    wrong = source._replace(read=lambda index, keys: change(source.read(index, keys)))
    with pytest.raises(InputError, match=message):
        make_batches(wrong, seed=0, batch_size=5, device=CPU)(0)
