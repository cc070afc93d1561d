"""Every schedule equals that of optax."""

from collections.abc import Callable

import jax
import numpy as np
import optax
import pytest
import torch

from backbones.errors import InputError
from backbones.optim.schedule import (
    SCHEDULES,
    Schedule,
    constant,
    cosine,
    exponential,
    join_schedules,
    linear,
    multi_step,
    one_cycle,
    polynomial,
    restarts,
    triangle,
    wsd,
)

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
    "polynomial": (polynomial(N, power=3.0, floor=0.1), optax.polynomial_schedule(1.0, 0.1, 3.0, N)),
    "exponential": (exponential(N, floor=0.05), optax.exponential_decay(1.0, N, 0.05, end_value=0.05)),
    "one-cycle": (one_cycle(N), optax.cosine_onecycle_schedule(N, 1.0, 0.3, 25.0, 1e4)),
    "triangle": (
        triangle(N),
        optax.join_schedules([optax.linear_schedule(0.2, 1.0, 23), optax.linear_schedule(1.0, 0.07, 77)], [23]),
    ),
    "wsd": (
        wsd(N, warmup_steps=10, decay_fraction=0.3, floor=0.1),
        optax.join_schedules(
            [optax.linear_schedule(0.0, 1.0, 10), optax.constant_schedule(1.0), optax.linear_schedule(1.0, 0.1, 30)],
            [10, 70],
        ),
    ),
    "restarts": (
        restarts(N, cycles=3, growth=2.0, floor=0.1),
        optax.sgdr_schedule(
            [
                {"init_value": 1.0, "peak_value": 1.0, "decay_steps": steps, "warmup_steps": 0, "end_value": 0.1}
                for steps in (14, 29, 57)  # of 100, as 1 : 2 : 4
            ]
        ),
    ),
    "multi-step": (
        multi_step(N, milestones=(0.5, 0.75), factor=0.1),
        optax.piecewise_constant_schedule(1.0, {50: 0.1, 75: 0.1}),
    ),
    "joined": (
        join_schedules([linear(20), constant(), cosine(50)], boundaries=[20, 40]),
        optax.join_schedules(
            [optax.linear_schedule(1.0, 0.0, 20), optax.constant_schedule(1.0), optax.cosine_decay_schedule(1.0, 50)],
            [20, 40],
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_schedule_equals_optax_over_its_whole_length(name: str) -> None:
    ours, theirs = CASES[name]
    steps = range(N + 20)  # beyond the end, too
    factors = [ours(torch.tensor(step)) for step in steps]
    assert all(factor.shape == () and factor.dtype == torch.float64 for factor in factors)
    if name == "multi-step":  # optax drops one step later: at `count > boundary`
        steps = [step + 1 if step in (50, 75) else step for step in steps]
    with jax.enable_x64(True):
        expected = [theirs(step) for step in steps]
    np.testing.assert_allclose([f.item() for f in factors], expected, rtol=1e-10, atol=1e-12)


def test_every_schedule_has_a_case() -> None:
    assert set(SCHEDULES) <= set(CASES)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name not in ("one-cycle", "triangle")])
def test_warm_up_rises_from_zero_to_one(name: str) -> None:
    schedule = SCHEDULES[name](N, warmup_steps=10)
    assert [round(schedule(torch.tensor(step)).item(), 6) for step in range(11)] == [i / 10 for i in range(11)]


def test_multi_step_counts_warm_up_steps() -> None:
    schedule = multi_step(N, warmup_steps=10, milestones=(0.5,))
    assert schedule(torch.tensor(49)) == 1 and schedule(torch.tensor(50)) == pytest.approx(0.1)


def test_multi_step_without_milestones_is_constant() -> None:
    factor = multi_step(N, milestones=())(torch.tensor(N))
    assert factor == 1 and factor.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: restarts(N, cycles=0), "cycles is 0; it must be 1 or more"),
        (lambda: cosine(N, floor=-0.1), "floor is -0.1; it must be 0 or more"),
        (lambda: exponential(N, floor=0.0), "floor is 0.0; it must be above 0"),
        (lambda: multi_step(N, milestones=(0.5, 75)), "milestones is 75; it must be from 0 to 1"),
        (lambda: linear(N, warmup_steps=-1), "warmup_steps is -1; it must be 0 or more"),
    ],
)
def test_options_out_of_range_are_errors(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "last_good"),
    [(cosine, N - 1), (constant, N - 1), (restarts, N - 1), (multi_step, N // 2 - 1), (wsd, N - 1)],
)
def test_a_warm_up_that_never_ends_is_warned_of(
    make: Callable[..., Schedule], last_good: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for warmup_steps, reached in ((last_good, True), (last_good + 1, False)):
        schedule = make(N, warmup_steps=warmup_steps)
        assert (max(schedule(step).item() for step in torch.arange(N)) == 1) == reached
        warned = capsys.readouterr().err.startswith("warning: the learning rate never reaches its full value")
        assert warned != reached


@pytest.mark.parametrize("options", [{"warmup_steps": 10, "decay_fraction": 1.0}, {"warmup_steps": 90}])
def test_wsd_ends_with_the_run(options: dict[str, float]) -> None:
    schedule = wsd(100, floor=0.1, **options)
    assert schedule(torch.tensor(100)).item() == pytest.approx(0.1)
    assert schedule(torch.tensor(options["warmup_steps"])) == 1


def test_restarts_of_very_different_lengths() -> None:
    for options in ({"growth": 1e300}, {"cycles": 1100}, {"growth": 1e-300}):
        schedule = restarts(100, **options)
        assert all(0 <= schedule(step).item() <= 1 for step in torch.tensor([0, 50, 99]))
