"""Linear regression on Gaussian data, away from its optimum: the covariance of its gradients is known.

A sample is x ~ N(0, 1) of `D` dimensions and y = x w* + NOISE z with z ~ N(0, 1). Its loss (x w - y)^2 / 2 has the
gradient g = x (x d - NOISE z), d = w - w*. So E g = d, and E |g|^2 = (D + 2) |d|^2 + NOISE^2 D.
"""

import torch
from torch import Tensor

from backbones.types import Batch, Metrics, ModelState, Params

D, NOISE, DISTANCE = 5, 1.5, 0.8


def make_params() -> Params:
    """w in two leaves, at `DISTANCE` from w* = 0 in each dimension."""
    weight = torch.full((D,), DISTANCE, dtype=torch.float64)
    return {"first": weight[:2].clone(), "second": weight[2:].clone()}


def random_batch(size: int, generator: torch.Generator) -> Batch:
    """x [size, D] as images, and y [size] as their weight."""
    images = torch.randn(size, D, generator=generator, dtype=torch.float64)
    y = NOISE * torch.randn(size, generator=generator, dtype=torch.float64)
    index = torch.arange(size)
    return Batch(images, index, targets=None, weight=y, index=index, epoch=index)


def squared_error(params: Params, state: ModelState, batch: Batch) -> tuple[Tensor, tuple[ModelState, Metrics]]:
    """Mean over the batch of (x w - y)^2 / 2."""
    residuals = batch.images @ torch.cat([params["first"], params["second"]]) - batch.weight
    return (residuals**2).mean() / 2, (state, {})


def square_of_the_mean() -> float:
    """|G|^2 of all samples."""
    return D * DISTANCE**2


def noise_of_one_sample() -> float:
    """tr(Sigma) = E |g|^2 - |E g|^2."""
    return (D + 1) * square_of_the_mean() + NOISE**2 * D
