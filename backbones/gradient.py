"""The gradient of a loss, averaged over micro-batches and ranks: by autograd, torch.func or DistributedDataParallel."""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket, all_reduce
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

import backbones.distributed as distributed
import backbones.tree as tree
from backbones.types import Batch, Metrics, ModelState, Params

LossFn = Callable[[Params, ModelState, Batch], tuple[Tensor, tuple[ModelState, Metrics]]]
"""(params, model_state, batch) -> (loss, (model_state, metrics))."""

GradAndValueResult = tuple[Params, tuple[Tensor, tuple[ModelState, Metrics]]]
"""(grads, (loss, (model_state, metrics)))."""

GradAndValue = Callable[[Params, ModelState, Sequence[Batch]], GradAndValueResult]
"""(params, model_state, micro_batches) -> (grads, (loss, (model_state, metrics)))."""


def phase(name: str) -> AbstractContextManager[object]:
    """Mark a part of an eager step, for a profiler."""
    return nullcontext() if torch.compiler.is_compiling() else record_function(name)


def grad_and_value(
    loss_fn: LossFn, params: Params, *, transform: Literal["autograd", "func"] = "autograd"
) -> GradAndValue:
    """The gradient of the loss, averaged over micro-batches and ranks.

    What is returned takes `(params, model_state, micro_batches)` and gives `(grads, (loss, (model_state, metrics)))`,
    each the mean over the micro-batches and over the ranks; `model_state` passes through the micro-batches in turn.
    Where there are several of either, `metrics` has the two estimates of `_noise` too. Their parts of the batch are the
    shares of the ranks, or the micro-batches of a single rank.

    In several processes it is a `DistributedDataParallel`, which sends gradients while the backward pass still
    computes; a compiled graph breaks there.

    Args:
        loss_fn: pure; `(params, model_state, batch) -> (loss, (model_state, metrics))` with a 0-D loss.
        params: leaves of the shapes and memory formats of those to come.
        transform: in one process, `autograd` for a step that runs eagerly, where it frees activations as it goes
            (torch.func keeps them all, as for a second derivative); `func` for one that is compiled or vmapped.
    """
    if distributed.world_size() > 1:
        return _with_ddp(loss_fn, params)
    func = torch.func.grad_and_value(loss_fn, has_aux=True) if transform == "func" else _autograd(loss_fn)

    def compute(params: Params, model_state: ModelState, micro_batches: Sequence[Batch]) -> GradAndValueResult:
        grads: Params = {}
        values, squares = [], []
        for batch in micro_batches:
            micro_grads, (loss, (model_state, metrics)) = func(params, model_state, batch)
            if len(micro_batches) > 1:
                squares.append(tree.global_norm(micro_grads).square())
                micro_grads = tree.map(lambda g: g / len(micro_batches), micro_grads)
            grads = tree.map(torch.add, grads, micro_grads) if grads else micro_grads
            values.append((loss, metrics))
        loss, metrics = _mean(values)
        if squares:
            metrics |= _noise(_mean(squares), grads, num_parts=len(squares), part_size=len(micro_batches[0].labels))
        return grads, (loss, (model_state, metrics))

    return compute


def _autograd(loss_fn: LossFn) -> Callable[[Params, ModelState, Batch], GradAndValueResult]:
    """`torch.func.grad_and_value(loss_fn, has_aux=True)` by `torch.autograd.grad`."""

    def compute(params: Params, model_state: ModelState, batch: Batch) -> GradAndValueResult:
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in params.items()}
        with phase("forward"):
            loss, (model_state, metrics) = loss_fn(leaves, model_state, batch)
        with phase("backward"):
            grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, grads, strict=True)), tree.map(Tensor.detach, (loss, (model_state, metrics)))

    return compute


def _noise(part_square: Tensor, grads: Params, *, num_parts: int, part_size: int) -> Metrics:
    """Unbiased estimates of |G|^2 and tr(Sigma), from the gradients of a batch and of its equal parts.

    G is the mean of the gradients of all samples, Sigma their covariance: McCandlish et al., "An empirical model of
    large-batch training", arXiv 1812.06162, appendix A.1.

    Args:
        part_square: mean over the parts of the square norm of a part's gradient, 0-D.
        grads: mean over the parts of their gradients.
        num_parts: 2 or more.
        part_size: samples of a part.

    Returns:
        `grad_sq_norm`, the estimate of |G|^2, and `grad_variance`, that of tr(Sigma).
    """
    square = tree.global_norm(grads).square()
    return {
        "grad_sq_norm": (num_parts * square - part_square) / (num_parts - 1),
        "grad_variance": (part_square - square) * part_size * num_parts / (num_parts - 1),
    }


def with_noise_scale(metrics: dict[str, float]) -> dict[str, float]:
    """Means of metrics over several steps, with `gradient_noise_scale` where they have the two estimates it is made of.

    It is tr(Sigma) / |G|^2 in samples: the ratio of the means, since the mean of ratios is biased. NaN where the
    estimate of |G|^2 is not positive, as it may be over few steps.
    """
    if "grad_variance" not in metrics:
        return metrics
    square, variance = metrics["grad_sq_norm"], metrics["grad_variance"]
    return {**metrics, "gradient_noise_scale": variance / square if square > 0 else math.nan}


class _LossModule(nn.Module):
    """Holds the leaves of `params` as parameters of a module, the only ones that `DistributedDataParallel` knows."""

    def __init__(self, loss_fn: LossFn, params: Params) -> None:
        super().__init__()
        self.loss_fn = loss_fn
        self.names = list(params)
        self.leaves = nn.ParameterList(params.values())
        if self.leaves[0].is_cpu:  # else DDP warns that there is none; on a GPU each step would wait for one
            self.unused = nn.Parameter(torch.zeros_like(self.leaves[0].flatten()[:1]))

    def forward(self, model_state: ModelState, batch: Batch) -> tuple[Tensor, tuple[ModelState, Metrics]]:
        return self.loss_fn(dict(zip(self.names, self.leaves, strict=True)), model_state, batch)


def _with_ddp(loss_fn: LossFn, params: Params) -> GradAndValue:
    # a 1x1 kernel has two equally good memory layouts, and its gradient may come in the other one
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    module = _LossModule(loss_fn, params)
    # By `find_unused_parameters` a parameter may be unused, as in one process; and the buckets stay those of the first
    # step, so that a resumed run adds in the same order. Not `gradient_as_bucket_view`: the next call would overwrite
    # the gradients.
    ddp = DistributedDataParallel(module, find_unused_parameters=True)
    norms: dict[Tensor, Tensor] = {}
    ddp.register_comm_hook(norms, _mean_with_norms)

    @torch.compiler.disable  # the reducer's hooks cannot be traced; a compiled `loss_fn` still runs compiled
    def compute(params: Params, model_state: ModelState, micro_batches: Sequence[Batch]) -> GradAndValueResult:
        for name, leaf in zip(module.names, module.leaves, strict=True):
            leaf.data, leaf.grad = params[name], None
        values, old_model_state = [], model_state
        for batch in micro_batches:
            is_last = batch is micro_batches[-1]
            with nullcontext() if is_last else ddp.no_sync():
                with phase("forward"):
                    loss, (model_state, metrics) = ddp(model_state, batch)
                with phase("backward"):
                    (loss / len(micro_batches)).backward()
            values.append(tree.map(Tensor.detach, (loss, metrics)))
            model_state = {name: leaf.detach() if leaf.requires_grad else leaf for name, leaf in model_state.items()}
        leaves = zip(module.names, module.leaves, strict=True)
        grads = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves}
        loss, metrics = _mean(values)
        square = torch.stack([norms[leaf] for leaf in module.leaves]).square().sum()
        written = {name: leaf for name, leaf in model_state.items() if leaf is not old_model_state[name]}
        loss, written, metrics, square = distributed.mean_over_ranks((loss, written, metrics, square))
        model_state = {**model_state, **written}
        part_size = sum(len(batch.labels) for batch in micro_batches)
        metrics |= _noise(square, grads, num_parts=distributed.world_size(), part_size=part_size)
        return grads, (loss, (model_state, metrics))

    return compute


def _mean_with_norms(norms: dict[Tensor, Tensor], bucket: GradBucket) -> Future[Tensor]:
    """What DDP does without a hook, to the last bit; before it, the norms of the rank's own gradients are kept."""
    norms.update(zip(bucket.parameters(), map(torch.linalg.vector_norm, bucket.gradients()), strict=True))
    work = all_reduce(bucket.buffer().mul_(1 / distributed.world_size()), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def _mean(values: Sequence[tree.Tree]) -> tree.Tree:
    return tree.map(lambda *leaves: torch.stack(leaves).mean(dim=0), *values)
