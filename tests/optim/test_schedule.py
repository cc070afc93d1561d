"""optax is the oracle."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import torch
from conftest import ROOT

from backbones.optim.schedule import (
    SCHEDULES,
    constant,
    cosine,
    exponential,
    joined,
    linear,
    multi_step,
    one_cycle,
    polynomial,
    restarts,
    wsd,
)
from backbones.optim.schedule.__main__ import main

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
    with jax.enable_x64(True):
        expected = [theirs(step) for step in steps]
    np.testing.assert_allclose([f.item() for f in factors], expected, rtol=1e-10, atol=1e-12)


def test_every_schedule_has_a_case() -> None:
    assert set(SCHEDULES) <= set(CASES)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "one-cycle"])
def test_warm_up_rises_from_zero_to_one(name: str) -> None:
    schedule = SCHEDULES[name](N, warmup_steps=10)
    assert [round(schedule(torch.tensor(step)).item(), 6) for step in range(11)] == [i / 10 for i in range(11)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_drawn(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--schedule", name, "--steps", "20", "--plot", str(tmp_path / "out.png")])
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert f"drew 20 steps of {name}" in capsys.readouterr().out


def test_a_users_mistake_in_drawing_is_one_message(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "backbones.optim.schedule", "--plot", tmp_path / "out.png"]
    for arguments, message in {
        ("--schedule", "cosin"): "error: unknown schedule 'cosin'; did you mean cosine",
        ("--steps", "0"): "error: --steps is 0; it must be 1 or more",
        ("--plot", "nowhere/out.png"): "error: cannot write nowhere/out.png",
        ("--plot", "out.xyz"): "error: cannot write out.xyz",
    }.items():
        done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.startswith(message) and done.stderr.count("\n") == 1, done.stderr
    floor = subprocess.run([*command, "--floor", "0.5"], cwd=ROOT, capture_output=True, text=True)
    assert floor.returncode == 0 and floor.stderr == "" and (tmp_path / "out.png").exists()


def test_multi_step_counts_its_milestones_in_the_whole_run() -> None:
    schedule = multi_step(N, warmup_steps=10, milestones=(0.5,))
    assert schedule(torch.tensor(49)) == 1 and schedule(torch.tensor(50)) == pytest.approx(0.1)
