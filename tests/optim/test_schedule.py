"""optax is the oracle."""

from collections.abc import Callable

import numpy as np
import optax
import pytest
import torch

from backbones.optim.schedule import SCHEDULES, constant, cosine, joined, linear, multi_step

N = 100
CASES = {
    "constant": (constant(N), optax.constant_schedule(1.0)),
    "constant-warm-up": (constant(N, warmup_steps=10), optax.warmup_constant_schedule(0.0, 1.0, 10)),
    "linear": (linear(N, floor=0.1), optax.linear_schedule(1.0, 0.1, N)),
    "cosine": (cosine(N), optax.cosine_decay_schedule(1.0, N)),
    "cosine-warm-up-floor": (
        cosine(N, warmup_steps=10, floor=0.01),
        optax.warmup_cosine_decay_schedule(0.0, 1.0, 10, N, end_value=0.01),
    ),
    "multi-step": (
        multi_step(N, milestones=(0.5, 0.75), factor=0.1),
        optax.piecewise_constant_schedule(1.0, {50: 0.1, 75: 0.1}),
    ),
    "joined": (
        joined([linear(20), constant(), cosine(50)], boundaries=[20, 40]),
        optax.join_schedules(
            [optax.linear_schedule(1.0, 0.0, 20), optax.constant_schedule(1.0), optax.cosine_decay_schedule(1.0, 50)],
            [20, 40],
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_schedule_equals_optax_over_its_whole_length(name: str) -> None:
    ours, theirs = CASES[name]
    steps = range(N + 20)  # and beyond the end
    factors = [ours(torch.tensor(step)) for step in steps]
    assert all(factor.shape == () and factor.dtype == torch.float64 for factor in factors)
    if name == "multi-step":  # optax drops one step later: at `count > boundary`
        steps = [step + 1 if step in (50, 75) else step for step in steps]
    np.testing.assert_allclose([f.item() for f in factors], [theirs(step) for step in steps], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_warm_up_rises_from_zero_to_one(make: Callable) -> None:
    schedule = make(N, warmup_steps=10)
    assert [round(schedule(torch.tensor(step)).item(), 6) for step in range(11)] == [i / 10 for i in range(11)]


def test_multi_step_counts_its_milestones_in_the_whole_run() -> None:
    schedule = multi_step(N, warmup_steps=10, milestones=(0.5,))
    assert schedule(torch.tensor(49)) == 1 and schedule(torch.tensor(50)) == pytest.approx(0.1)
