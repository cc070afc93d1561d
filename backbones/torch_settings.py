"""torch's global settings: what a training sets, and how they are put back after it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def set_arithmetic(*, deterministic: bool, tf32: bool = False) -> None:
    """Let torch multiply in full float32, or in TF32, and on CUDA by deterministic algorithms only, if requested."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    _use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time, and nothing reads such memory


@contextmanager
def torch_settings_kept() -> Iterator[None]:
    """Within the block torch's global settings and generators may be changed; after it they are as before."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    num_threads = torch.get_num_threads()
    tf32, matmul_tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            if torch.get_num_threads() != num_threads:
                torch.set_num_threads(num_threads)
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32, matmul_tf32
            _use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@contextmanager
def in_full_float32() -> Iterator[None]:
    """Within the block torch computes in float32 as in training, without TF32; after it its settings are as before."""
    with torch_settings_kept():
        set_arithmetic(deterministic=False)
        yield


def _use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
    """`torch.use_deterministic_algorithms`, which imports the compiler, where it changes anything."""
    now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if now != (mode, warn_only):
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
