"""Resources of a process: CPU threads, memory, and the precision that its device is fast in."""

import ctypes
import math
import os
import resource
from contextlib import suppress
from pathlib import Path

import torch

import backbones.distributed as distributed

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
MADV_HUGEPAGE = 14  # of the kernel's mman.h

CGROUP = Path("/sys/fs/cgroup")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")

_keeps_memory = _has_huge_pages = False


def num_cores() -> int:
    """CPU cores that this process may use: those of its affinity mask, at most the quota of its container."""
    return max(1, int(min(len(os.sched_getaffinity(0)), _quota())))


def share_of_cores(processes: int | None = None) -> int:
    """CPU cores for each of `processes`; None means those that torchrun has started on this machine."""
    return max(1, num_cores() // (processes or distributed.local_world_size()))


def _quota() -> float:
    """CPU time that the container gets in a second, in cores (cgroup v2, then v1)."""
    try:
        if (CGROUP / "cpu.max").exists():
            quota, period = (CGROUP / "cpu.max").read_text().split()
        else:
            quota, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except (OSError, ValueError):  # no limit, which reads "max", or no cgroups
        return math.inf


def set_num_threads(wanted: int | None) -> None:
    """Let this process compute in `wanted` threads of the CPU, or in its share of the cores.

    torchrun gives each of several processes one thread, by `OMP_NUM_THREADS=1`, however many cores there are. Any other
    number in that variable, or that torch has been told, counts, up to the number of cores.
    """
    num_local = distributed.local_world_size()
    is_one = os.environ.get("OMP_NUM_THREADS") == "1" and torch.get_num_threads() == 1
    by_torchrun = wanted is None and num_local > 1 and is_one
    share = share_of_cores() if by_torchrun else min(torch.get_num_threads(), num_cores())
    threads = wanted or share
    if threads == torch.get_num_threads():
        return
    torch.set_num_threads(threads)
    if by_torchrun:
        distributed.print0(f"CPU threads in each of the {num_local} processes: {threads}; torchrun's default is 1")


def choose_precision(precision: str, device: torch.device) -> str:
    """What `auto` stands for: bfloat16 where the device multiplies matrices faster in it, else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if is_fast else "float32"


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What the model computes in: TF32 is a way to multiply float32."""
    return torch.bfloat16 if choose_precision(precision, device) == "bfloat16" else torch.float32


def peak_memory(device: torch.device) -> int:
    """The most memory that this process had at once: tensors on a GPU, or all of it on a CPU; bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident_memory() -> int:
    """The memory that this process has now, bytes; 0 where there is no /proc."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def free_memory() -> float:
    """The memory that this process may still take, bytes: of the machine, and of its container; inf if unknown."""
    free = math.inf
    of_version_1 = "memory/memory.limit_in_bytes", "memory/memory.stat", "total_rss"
    for limit, statistics, of_processes in (("memory.max", "memory.stat", "anon"), of_version_1):
        with suppress(OSError, ValueError):  # no limit, which reads "max", or other cgroups
            used = dict(line.split() for line in (CGROUP / statistics).read_text().splitlines())[of_processes]
            free = float(int((CGROUP / limit).read_text()) - int(used))
    with suppress(OSError):  # no /proc
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = min(free, 1024.0 * int(fields["MemAvailable"].split()[0]))
    return free


def malloc() -> str:
    """File name of the library whose `malloc` this process uses, such as `libc.so.6` or `libjemalloc.so.2`."""
    address = ctypes.cast(ctypes.CDLL(None).malloc, ctypes.c_void_p).value or 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5)
        start, end = (int(each, 16) for each in span.split("-"))
        if start <= address < end:
            return Path(path).name
    return "unknown"


def keep_memory() -> None:
    """Let glibc's malloc keep what is freed for the next step; another allocator, such as jemalloc, stays as it is.

    By default it maps each tensor of 32 MB or more anew, which the kernel fills with zeros, and unmaps it when it is
    freed. That costs a twentieth of a training step on some CPUs, and half of it on others. Where the kernel has
    huge pages for those who ask, the heap is in these, which spares another tenth.
    """
    global _keeps_memory, _has_huge_pages
    if _keeps_memory:
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version") or not malloc().startswith("libc"):
        return
    done = [libc.mallopt(*each) for each in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 64 << 20))]
    _keeps_memory = all(done)
    _has_huge_pages = _keeps_memory and _ask_for_huge_pages(libc)


def _ask_for_huge_pages(libc: ctypes.CDLL) -> bool:
    """Reserve addresses for the heap, as large as free memory but without taking it, and ask for huge pages there.

    It must be large from the beginning: what it grows by later has ordinary pages. Not done where a process may have
    a limited number of addresses, or where those that are not used count as taken memory.
    """
    limits = [resource.getrlimit(each)[0] for each in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    with suppress(OSError, OverflowError):  # no /proc
        is_counted, is_on_request = OVERCOMMIT.read_text().strip() == "2", "[madvise]" in HUGE_PAGES.read_text()
        if is_counted or not is_on_request or limits != [resource.RLIM_INFINITY] * 2:
            return False
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        size, page = int(free_memory()), resource.getpagesize()
        if (block := libc.malloc(size)) is not None:
            asked = libc.madvise(block + -block % page, size - page, MADV_HUGEPAGE) == 0
            libc.free(block)  # the heap keeps it
            return asked
    return False


def describe_malloc() -> str:
    """The allocator of this process, for the record."""
    kept = ", which keeps what is freed" if _keeps_memory else ""
    return f"{malloc()}{kept}{' in huge pages' if _has_huge_pages else ''}"
