"""BatchNorm with the statistics of all processes (Peng et al., "MegDet", arXiv 1711.07240, section 3.2)."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import backbones.distributed as distributed
from backbones.models.base import Model
from backbones.types import ModelState, Params


def with_sync_batch_norm(model: Model) -> Model:
    """The model, whose BatchNorms take mean and variance over the images of all ranks, each with equally many.

    `torch.nn.SyncBatchNorm` is for GPUs alone.
    """
    if distributed.world_size() == 1:
        return model

    def apply(params: Params, model_state: ModelState, images: Tensor, *, train: bool) -> tuple[Tensor, ModelState]:
        with _SyncBatchNorm() if train else nullcontext():  # ranks may evaluate unequal numbers of batches
            return model.apply(params, model_state, images, train=train)

    return model._replace(apply=apply)


class _SyncBatchNorm(TorchFunctionMode):
    """Within the block `F.batch_norm`, which all layers call, is the one below."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    dims = [0, *range(2, x.ndim)]
    size = distributed.world_size()
    of_ranks = wide.new_zeros(size, 2, x.shape[1])
    of_ranks[distributed.rank()] = torch.stack([wide.mean(dims), wide.var(dims, correction=0)])
    # the sum gathers the rows of all ranks, and its backward pass sums their gradients
    means, variances = _SumOverRanks.apply(of_ranks).unbind(dim=1)
    mean = means.mean(dim=0)
    var = (variances + (means - mean) ** 2).mean(dim=0)
    if running_mean is not None and running_var is not None:
        count = size * x.numel() // x.shape[1]
        running_mean.lerp_(mean.detach().to(running_mean.dtype), momentum)
        running_var.lerp_(var.detach().to(running_var.dtype) * (count / (count - 1)), momentum)
    scale = torch.rsqrt(var + eps)
    scale = scale if weight is None else scale * weight
    shape = [1, -1, *[1] * (x.ndim - 2)]
    normalized = (wide - mean.view(shape)) * scale.view(shape)
    return (normalized if bias is None else normalized + bias.view(shape)).to(x.dtype)


class _SumOverRanks(torch.autograd.Function):
    """The sum on all ranks, whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return distributed.sum_over_ranks(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return distributed.sum_over_ranks(grad)
