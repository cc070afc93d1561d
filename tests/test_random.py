import numpy as np
import pytest
import torch
from scipy import stats

import backbones.random as random
from backbones.augment.erase import random_levels
from backbones.optim import add_noise


def mix_reference(key: int, number: int) -> int:
    """SplitMix64 in Python's unbounded integers: a counter times the golden gamma, then the finaliser."""
    mask = (1 << 64) - 1
    z = (key + (number + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_fold_in_is_splitmix64() -> None:
    # The first outputs of the reference generator for seed 1234567, as published with it.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    keys = random.fold_in(torch.tensor(1234567), torch.arange(4))
    assert [key % (1 << 64) for key in keys.tolist()] == published == [mix_reference(1234567, n) for n in range(4)]


def test_keys_do_not_depend_on_shape_or_neighbours() -> None:
    key = random.key(3)
    together = random.fold_in(key, torch.arange(100))
    assert together[17] == random.fold_in(key, 17)
    assert len(set(together.tolist())) == 100


def test_uniform_is_uniform_over_indices_steps_and_seeds() -> None:
    for keys in (
        random.fold_in(random.key(0), torch.arange(100_000)),
        torch.stack([random.fold_in(random.fold_in(random.key(0), step), 5) for step in range(5_000)]),
        torch.stack([random.fold_in(random.key(seed), 5) for seed in range(5_000)]),
    ):
        values = random.uniform(keys).numpy()
        assert values.min() >= 0 and values.max() < 1
        assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_draws_of_one_sample_are_independent() -> None:
    keys = random.fold_in(random.key(1), torch.arange(50_000))
    a, b = (random.uniform(random.fold_in(keys, number)).numpy() for number in (0, 1))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02


def test_randint_covers_its_range_evenly() -> None:
    draws = random.randint(random.fold_in(random.key(2), torch.arange(90_000)), 9)
    counts = torch.bincount(draws, minlength=9)
    assert len(counts) == 9
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.slow
def test_compiled_draws_are_the_same() -> None:
    def draw(key: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return random.uniform(random.fold_in(key, index))

    key, index = random.key(4), torch.arange(1000)
    assert torch.equal(torch.compile(draw, fullgraph=True)(key, index), draw(key, index))  # inductor: C++ integers


def test_seed_torch_and_generator_depend_on_every_number() -> None:
    draws = set()
    for numbers in ((0, 1, 2), (0, 1, 3), (0, 2, 1), (1, 1, 2)):
        random.seed_torch(*numbers)
        draws |= {torch.rand(()).item(), torch.rand((), generator=random.generator(*numbers)).item()}
    assert len(draws) == 4  # the two ways of one key draw the same


@pytest.mark.slow
def test_inductor_computes_the_same_numbers() -> None:
    """In whose graphs products of positions would not wrap around at 64 bits."""
    keys, images = random.fold_in(random.key(0), torch.arange(2)), torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    noise, zeros = add_noise(eta=0.5, gamma=0.55, seed=3), {"a": torch.zeros(6, 7)}
    state = noise.init(zeros)

    def draw(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return random_levels(keys, images), noise.update(zeros, state, zeros)[0]["a"]

    for got, wanted in zip(torch.compile(draw)(keys), draw(keys), strict=True):
        torch.testing.assert_close(got, wanted)
