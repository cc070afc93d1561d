"""One process or many: all that knows of ranks, and the seam between `torch.func` and `DistributedDataParallel`."""

import functools
import gc
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.distributed.nn  # now: its functions hold the process group that is there when they are defined
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import backbones.tree as tree
from backbones.errors import InputError
from backbones.types import Batch, Metrics, ModelState, Params

LossFn = Callable[[Params, ModelState, Batch], tuple[Tensor, tuple[ModelState, Metrics]]]
"""(params, model_state, batch) -> (loss, (model_state, metrics))."""

GradAndValueResult = tuple[Params, tuple[Tensor, tuple[ModelState, Metrics]]]
"""(grads, (loss, (model_state, metrics)))."""

GradAndValue = Callable[[Params, ModelState, Sequence[Batch]], GradAndValueResult]
"""(params, model_state, micro_batches) -> (grads, (loss, (model_state, metrics)))."""


def init(device: str) -> torch.device:
    """Join the process group that torchrun set up, if it set up several processes, and return this one's device.

    Args:
        device: `auto`, `cpu` or `cuda`; auto takes the GPU where there is one.

    Raises:
        InputError: CUDA was asked for and is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU on this machine; use --device cpu or auto")
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    num_local, num_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if use_cuda and num_local > num_gpus:
        raise InputError(f"{num_local} processes want a GPU each and there are {num_gpus}; lower --nproc_per_node")
    local_device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(local_device)
    if world_size() > 1 and not dist.is_initialized():
        dist.init_process_group(
            "nccl" if use_cuda else "gloo",
            store=_store(),
            rank=rank(),
            world_size=world_size(),
            device_id=local_device if use_cuda else None,
        )
    return local_device


def _store() -> dist.Store:
    """Where the processes find one another: torchrun's, but new after a restart.

    torchrun keeps one store over all restarts, in which the addresses of the processes that died still stand.
    """
    store, _, _ = next(dist.rendezvous("env://"))
    return dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def shut_down() -> None:
    """Leave the process group, if there is one, and let gloo's threads end.

    A thread that still holds a tensor aborts the process if it drops it while Python ends.
    """
    if dist.is_initialized():
        _host_group.cache_clear()
        dist.destroy_process_group()
        gc.collect()  # of DDP, which holds the group, which holds the threads


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this is the process that speaks and writes."""
    return rank() == 0


def say(line: str) -> None:
    """Print a line, on rank 0."""
    if is_main():
        print(line, flush=True)


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def on_main(function: Callable[[], None]) -> None:
    """Call `function` on rank 0 while the other ranks wait; if it raises an InputError, all of them do."""
    raised: list[InputError | None] = [None]
    if is_main():
        try:
            function()
        except InputError as error:
            raised = [error]
    if dist.is_initialized():
        dist.broadcast_object_list(raised, src=0)
    if raised[0] is not None:
        raise raised[0]


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on any rank; the processes wait for one another, but not for their devices."""
    if not dist.is_initialized():
        return flag
    count = torch.tensor(int(flag))
    dist.all_reduce(count, group=_host_group())
    return count.item() > 0


@functools.cache
def _host_group() -> dist.ProcessGroup:
    return dist.new_group(backend="gloo")


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of every rank's `values`, on all ranks."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def mean_over_ranks(values: tree.Tree) -> tree.Tree:
    """The mean over ranks of every floating leaf, in one message; integers (counts) are equal on all ranks and stay."""
    floating = [leaf for leaf in tree.leaves(values) if leaf.is_floating_point()]
    flat = torch.cat([leaf.reshape(-1).to(torch.float32) for leaf in floating])
    means = iter((sum_over_ranks(flat) / world_size()).split([leaf.numel() for leaf in floating]))
    return tree.map(
        lambda leaf: next(means).reshape(leaf.shape).to(leaf.dtype) if leaf.is_floating_point() else leaf, values
    )


def grad_and_value(loss_fn: LossFn, params: Params) -> GradAndValue:
    """The gradient of the loss, averaged over micro-batches and ranks.

    What is returned takes `(params, model_state, micro_batches)` and gives `(grads, (loss, (model_state, metrics)))`,
    each the mean over the micro-batches and over the ranks; `model_state` passes through the micro-batches in turn. In
    one process it is made of `torch.func.grad_and_value`, to be compiled into the graph of its caller. In several it is
    a `DistributedDataParallel`, which sends gradients while the backward pass still computes; a graph breaks there.

    Args:
        loss_fn: pure; `(params, model_state, batch) -> (loss, (model_state, metrics))` with a 0-D loss.
        params: leaves of the shapes and memory formats of those to come.
    """
    return _with_ddp(loss_fn, params) if world_size() > 1 else _with_func(loss_fn)


def _with_func(loss_fn: LossFn) -> GradAndValue:
    func = torch.func.grad_and_value(loss_fn, has_aux=True)

    def compute(params: Params, model_state: ModelState, micro_batches: Sequence[Batch]) -> GradAndValueResult:
        grads, values = None, []
        for batch in micro_batches:
            micro_grads, (loss, (model_state, metrics)) = func(params, model_state, batch)
            micro_grads = tree.map(lambda g: g / len(micro_batches), micro_grads)
            grads = micro_grads if grads is None else tree.map(torch.add, grads, micro_grads)
            values.append((loss, metrics))
        loss, metrics = _mean(values)
        return grads, (loss, (model_state, metrics))

    return compute


class _Carrier(nn.Module):
    """Lends a tree of leaves to `DistributedDataParallel`, which knows parameters of modules only."""

    def __init__(self, loss_fn: LossFn, params: Params) -> None:
        super().__init__()
        self.loss_fn = loss_fn
        self.names = list(params)
        self.leaves = nn.ParameterList(params.values())

    def forward(self, model_state: ModelState, batch: Batch) -> tuple[Tensor, tuple[ModelState, Metrics]]:
        return self.loss_fn(dict(zip(self.names, self.leaves, strict=True)), model_state, batch)


def _with_ddp(loss_fn: LossFn, params: Params) -> GradAndValue:
    carrier = _Carrier(loss_fn, params)
    ddp = DistributedDataParallel(carrier, gradient_as_bucket_view=True)

    @torch.compiler.disable  # the reducer's hooks cannot be traced; a compiled `loss_fn` still runs compiled
    def compute(params: Params, model_state: ModelState, micro_batches: Sequence[Batch]) -> GradAndValueResult:
        for name, leaf in zip(carrier.names, carrier.leaves, strict=True):
            leaf.data, leaf.grad = params[name], None
        values = []
        for batch in micro_batches:
            is_last = batch is micro_batches[-1]
            with nullcontext() if is_last else ddp.no_sync():
                loss, (model_state, metrics) = ddp(model_state, batch)
                (loss / len(micro_batches)).backward()
            values.append((loss.detach(), metrics))
        grads = {name: leaf.grad for name, leaf in zip(carrier.names, carrier.leaves, strict=True)}
        loss, metrics = _mean(values)
        loss, model_state, metrics = mean_over_ranks((loss, model_state, metrics))
        return grads, (loss, (model_state, metrics))

    return compute


def _mean(values: Sequence[tree.Tree]) -> tree.Tree:
    return tree.map(lambda *leaves: torch.stack(leaves).mean(dim=0), *values)
