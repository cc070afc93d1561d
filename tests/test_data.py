from collections.abc import Iterable
from itertools import chain

import numpy as np
import pytest
import torch

import backbones.random as random
from backbones.data import Split, channel_statistics, epoch_order, eval_batches, train_batch


def make_split(size: int) -> Split:
    return Split(torch.arange(size, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4), torch.arange(size))


def run_indices(size: int, batch_size: int, num_steps: int, seed: int = 0) -> list[list[int]]:
    split = make_split(size)
    return [train_batch(split, seed=seed, step=s, batch_size=batch_size).index.tolist() for s in range(num_steps)]


def flatten(lists: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


@pytest.mark.parametrize("batch_size", [7, 20, 45])  # does not divide; divides; holds more than two epochs
def test_every_epoch_is_a_permutation_and_nothing_is_dropped(batch_size: int) -> None:
    row = flatten(run_indices(20, batch_size, 200 // batch_size + 1))
    epochs = [row[i : i + 20] for i in range(0, 160, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_order_depends_on_the_seed_alone() -> None:
    assert run_indices(20, 7, 5) == run_indices(20, 7, 5)
    assert run_indices(20, 7, 5) != run_indices(20, 7, 5, seed=1)
    assert run_indices(20, 5, 8)[6] == flatten(run_indices(20, 1, 40)[30:35])  # whatever the batch size


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_same_batches(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = run_indices(20, 8, 10)
    shares = []
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    for rank in range(world_size):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(run_indices(20, 8, 10))
    assert [flatten(parts) for parts in zip(*shares, strict=True)] == alone


def test_batch_holds_the_samples_of_its_indices() -> None:
    batch = train_batch(make_split(20), seed=0, step=3, batch_size=8)
    assert batch.labels.tolist() == batch.index.tolist() == batch.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 12, 19])
def test_evaluation_counts_each_sample_once(world_size: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    for rank in range(world_size):
        monkeypatch.setenv("RANK", str(rank))
        batches = list(eval_batches(make_split(size), batch_size=8))
        assert len({batch.labels.shape for batch in batches}) == 1  # nothing is compiled twice
        assert len(batches[0].labels) * world_size < min(8, size) + world_size  # and little is filled up
        counted += [label for batch in batches for label in batch.labels.tolist() if label >= 0]
    assert sorted(counted) == list(range(size))


def test_epoch_order_is_pinned() -> None:
    """A changed order would silently change every published run."""
    assert epoch_order(0, 0, 10, torch.device("cpu")).tolist() == [0, 8, 3, 7, 2, 5, 9, 6, 4, 1]


def test_channel_statistics_are_those_of_numpy() -> None:
    images = torch.randint(0, 256, (50, 3, 5, 7), generator=random.generator(0)).to(torch.uint8)
    mean, std = channel_statistics(Split(images, torch.zeros(50, dtype=torch.int64)))
    np.testing.assert_allclose(mean, images.numpy().mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, images.numpy().std(axis=(0, 2, 3)), rtol=1e-6)
