"""One process or several: how they connect, their collectives, and what rank 0 does for all."""

import gc
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a process group, which its functions would keep as a default argument
from torch import Tensor
from tqdm import tqdm

import backbones.tree as tree
from backbones.errors import InputError

T = TypeVar("T")

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
TORCHRUN = (*RANKS, "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that torchrun sets for each of its processes."""

OTHER_LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Environment variables in which srun and mpirun tell how many processes they have started."""

TIMEOUT = 600.0
"""Seconds that a process waits for the others before it ends with an error, unless `set_timeout` says otherwise."""

_timeout: float = TIMEOUT
_warned: set[str] = set()


def join() -> None:
    """Join the other processes that torchrun started, if there are any.

    Raises:
        InputError: the environment is only partly that of torchrun, or another launcher has started several processes.
    """
    if dist.is_initialized():
        return
    found = {name: os.environ[name] for name in TORCHRUN if name in os.environ}
    if not found.keys() & {*RANKS}:  # a cluster may set MASTER_ADDR for everything that runs on it
        for name in OTHER_LAUNCHERS:
            if os.environ.get(name, "1") != "1":
                raise InputError(
                    f"{name} is {os.environ[name]}: each of these processes would train alone; let srun or mpirun "
                    "start one torchrun per machine, which starts the processes"
                )
        return
    rank, size = found.get("RANK", ""), found.get("WORLD_SIZE", "")
    complete = len(found) == len(TORCHRUN) and all(found[name].isdecimal() for name in RANKS)
    if not complete or int(rank) >= int(size):
        shown = " ".join(f"{name}={value}" for name, value in found.items())
        raise InputError(
            f"the environment has {shown}, which torchrun did not set: it sets {', '.join(TORCHRUN)}; start with "
            "torchrun, or unset them to train in one process"
        )
    if int(size) > 1:
        # what is on the host is sent over gloo, so that no rank waits for its GPU
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        timeout = timedelta(seconds=TIMEOUT)
        store = _store(int(rank), int(size))
        dist.init_process_group(backend, store=store, rank=int(rank), world_size=int(size), timeout=timeout)


def local_world_size() -> int:
    """Number of processes that torchrun has started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def init(device: str) -> torch.device:
    """Join the other processes, and return this one's device.

    Args:
        device: `auto`, `cpu` or `cuda`; auto takes the GPU where there is one.

    Raises:
        InputError: CUDA was asked for and is not there.
    """
    join()
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU on this machine; use --device cpu or auto")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    num_local, num_gpus = local_world_size(), torch.cuda.device_count()
    if num_local > num_gpus:
        raise InputError(f"{num_local} processes want a GPU each and there are {num_gpus}; lower --nproc_per_node")
    local_device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(local_device)
    return local_device


def _store(rank: int, size: int) -> dist.Store:
    """The store in which the processes find one another, new after each restart.

    torchrun keeps one store over all restarts, with the addresses of processes that died in it. The number of restarts
    does not tell them apart, since each torchrun counts its own. So rank 0 draws a random prefix for this start, and
    sends it to each other rank, which requests it by a random key of its own.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=TIMEOUT)))
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"request {rank}", own)
        start = store.get(f"start for {own}").decode()
        store.set(f"{start} {rank}", "joined")
        return dist.PrefixStore(start, store)
    deadline = time.monotonic() + TIMEOUT
    for other in range(1, size):
        while not store.check([f"{own} {other}"]):
            if time.monotonic() > deadline:
                raise InputError(f"rank {other} has not joined in {TIMEOUT:.0f} seconds; see what it printed")
            request = store.get(f"request {other}").decode()  # perhaps still that of a process that died
            store.set(f"start for {request}", own)
            time.sleep(0.001)
    return dist.PrefixStore(own, store)


def set_timeout(seconds: float) -> None:
    """How long a process waits for the others before it ends with an error."""
    global _timeout
    _timeout = seconds
    group = dist.group.WORLD
    if group is not None:
        for device in group._device_types:
            group._get_backend(device)._set_default_timeout(timedelta(seconds=seconds))


@contextmanager
def long_timeout() -> Iterator[None]:
    """Within the block and at its end processes wait a day for each other: one may have to decode a million files."""
    before = _timeout
    set_timeout(24 * 3600.0)
    try:
        yield
        barrier()
    finally:
        set_timeout(before)


def is_lost_connection(error: Exception) -> bool:
    """Whether an error says that another process has ended, or has not answered in time."""
    return isinstance(error, dist.DistError) or (dist.is_initialized() and "gloo" in str(error))


def all_failed() -> bool:
    """Whether all ranks end with an error: each that does calls this, and waits up to 5 seconds for the others."""
    if not dist.is_initialized():
        return True
    store = dist.distributed_c10d._get_default_store()
    deadline = time.monotonic() + 5
    with suppress(dist.DistError):  # the process that holds the store has ended
        store.add("failed", 1)
        while time.monotonic() < deadline:
            if store.add("failed", 0) == world_size():
                return True
            time.sleep(0.01)
    return False


def this_process() -> str:
    """This process, for a message of several: `rank 3 on node-1`. Also before it has joined the others."""
    return f"rank {os.environ.get('RANK', rank())} on {socket.gethostname()}"


def shut_down(*, failed: bool = False) -> None:
    """Leave the process group, if there is one, and let gloo's threads end.

    A thread that still holds a tensor aborts the process if it drops it while Python ends. If this process has
    `failed`, what its GPU still sends to the others is given up.
    """
    if dist.is_initialized():
        if failed and dist.is_nccl_available() and torch.cuda.is_available():
            dist.distributed_c10d._get_default_group()._get_backend(torch.device("cuda")).abort()
        dist.destroy_process_group()
        gc.collect()  # of DDP, which holds the group, which holds the threads


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, the process that prints and writes."""
    return rank() == 0


def print0(line: str) -> None:
    """Print a line, on rank 0."""
    if is_main():
        print(line, flush=True)


def progress(*args: Any, **options: Any) -> tqdm:
    """tqdm's progress bar, on rank 0."""
    return tqdm(*args, disable=None if is_main() else True, **options)


def warn0(line: str) -> None:
    """Print a warning to stderr, on rank 0."""
    if is_main():
        print(f"warning: {line}", file=sys.stderr, flush=True)


def warn0_once(line: str) -> None:
    """Print a warning to stderr, on rank 0, once in a process: of options, which are read several times in a run."""
    if line not in _warned:
        _warned.add(line)
        warn0(line)


def on_main(function: Callable[[], T]) -> T:
    """Call `function` on rank 0 while the other ranks wait, and give all of them its result.

    So no rank decides by what it sees of the disk itself. If the call raises an InputError, all ranks raise it.
    """
    sent: list[Any] = [None, None]  # the result, the mistake
    if is_main():
        try:
            sent[0] = function()
        except InputError as error:
            sent[1] = error
    if dist.is_initialized():
        dist.broadcast_object_list(sent, src=0)
    result, mistake = sent
    if mistake is not None:
        raise mistake
    return result


def once_a_node(function: Callable[[], None]) -> None:
    """Call `function` on rank 0, then on one rank of each other machine, while all wait: it prepares what is on disk.

    Where the machines share a disk, the others find what rank 0 has prepared.
    """
    on_main(function)
    if os.environ.get("LOCAL_RANK", "0") == "0" and not is_main():
        function()
    barrier()


def barrier() -> None:
    """Wait until all ranks are here."""
    any_rank(False)


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on any rank."""
    return any_rank_async(lambda: flag)()


def any_rank_async(flag: Callable[[], bool]) -> Callable[[], bool]:
    """Start to find out whether `flag()` is true on any rank; the function that is returned waits for the result.

    In between this process can compute. `flag` is called at once if there are other ranks, else by what is returned.
    """
    if not dist.is_initialized():
        return flag
    count = torch.tensor(int(flag()))
    work = dist.all_reduce(count, async_op=True)

    def wait() -> bool:
        work.wait()
        return count.item() > 0

    return wait


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of every rank's `values`, on all ranks."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def mean_over_ranks(values: tree.Tree) -> tree.Tree:
    """The mean over ranks of every floating leaf, in one message; integers (counts) are equal on all ranks.

    It is taken in float64, in which the mean of equal float32 numbers is that number.
    """
    floating = [leaf for leaf in tree.leaves(values) if leaf.is_floating_point()]
    if not floating:
        return values
    flat = torch.cat([leaf.reshape(-1).to(torch.float64) for leaf in floating])
    means = iter((sum_over_ranks(flat) / world_size()).split([leaf.numel() for leaf in floating]))
    return tree.map(
        lambda leaf: next(means).reshape(leaf.shape).to(leaf.dtype) if leaf.is_floating_point() else leaf, values
    )
