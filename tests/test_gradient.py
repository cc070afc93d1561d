"""The gradient noise scale, against a loss whose gradients have a covariance in closed form."""

from pathlib import Path

import pytest
import torch
from helpers.processes import run_ranks
from helpers.regression import make_params, noise_of_one_sample, random_batch, square_of_the_mean, squared_error
from helpers.runs import ROOT
from torch import Tensor

import backbones.random as random
from backbones.gradient import grad_and_value, with_noise_scale

NUM_PARTS, PART_SIZE = 4, 2


def estimates(num_steps: int) -> dict[str, Tensor]:
    """Both estimates of each step, [num_steps] float64."""
    params = make_params()
    compute = grad_and_value(squared_error, params)

    def metrics_of(step: int) -> dict[str, Tensor]:
        generator = random.generator(0, step)
        return compute(params, {}, [random_batch(PART_SIZE, generator) for _ in range(NUM_PARTS)])[1][1][1]

    every = [metrics_of(step) for step in range(num_steps)]
    return {name: torch.stack([metrics[name] for metrics in every]) for name in every[0]}


def test_the_estimates_are_unbiased() -> None:
    found = estimates(1500)
    wanted = {"grad_sq_norm": square_of_the_mean(), "grad_variance": noise_of_one_sample()}
    assert found.keys() == wanted.keys()
    for name, values in found.items():
        standard_error = values.std().item() / len(values) ** 0.5
        assert standard_error < 0.05 * wanted[name]  # else the next line would say nothing
        assert abs(values.mean().item() - wanted[name]) < 3 * standard_error, name
    means = {name: values.mean().item() for name, values in found.items()}
    scale = with_noise_scale(means)["gradient_noise_scale"]
    assert scale == pytest.approx(noise_of_one_sample() / square_of_the_mean(), rel=0.1)


def test_torch_func_and_a_compiled_graph_give_the_same() -> None:
    params, generator = make_params(), random.generator(0)
    micro_batches = [random_batch(PART_SIZE, generator) for _ in range(NUM_PARTS)]
    by_func = grad_and_value(squared_error, params, transform="func")
    compiled = torch.compile(by_func, fullgraph=True, backend="aot_eager")
    wanted = grad_and_value(squared_error, params)(params, {}, micro_batches)
    for compute in (by_func, compiled):
        torch.testing.assert_close(compute(params, {}, micro_batches), wanted)


def test_a_single_batch_has_no_estimate() -> None:
    params = make_params()
    batch = random_batch(8, random.generator(0))
    _, (_, (_, metrics)) = grad_and_value(squared_error, params)(params, {}, [batch])
    assert metrics == {} and with_noise_scale({"loss": 1.0}) == {"loss": 1.0}


def test_the_scale_is_the_ratio_of_means_and_none_where_the_gradient_drowns_in_noise() -> None:
    assert with_noise_scale({"grad_sq_norm": 2.0, "grad_variance": 6.0})["gradient_noise_scale"] == 3.0
    assert str(with_noise_scale({"grad_sq_norm": -1.0, "grad_variance": 6.0})["gradient_noise_scale"]) == "nan"


@pytest.mark.slow
def test_ranks_are_as_micro_batches(tmp_path: Path) -> None:
    """See ranks.py: three ranks against three micro-batches of one process, and against DDP without our hook."""
    finished = run_ranks(3, ROOT / "tests" / "helpers" / "ranks.py", "noise", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("all equal") == 3
