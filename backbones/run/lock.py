"""The lock of a run folder: one run at a time writes into it, from any machine that shares the disk."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import backbones.distributed as distributed
from backbones.errors import InputError
from backbones.run.run_dir import RUNS

LOCK = "lock"


@contextmanager
def locked(run_dir: Path, *, option: str = "--run-dir") -> Iterator[None]:
    """Hold the lock of a run folder, which is made if it does not exist; rank 0 holds it for all.

    The operating system releases the lock when the process ends, also by `kill -9`. An error offers `option`.

    Raises:
        InputError: another process holds it, or the folder cannot be written.
    """
    descriptor = distributed.on_main(lambda: _lock(run_dir, option))
    try:
        yield
    finally:
        if distributed.is_main():
            with suppress(OSError):  # as on a disk that has become read-only
                (run_dir / LOCK).unlink()
            os.close(descriptor)
            with suppress(OSError):  # it is not empty: something was started
                run_dir.rmdir()
                RUNS.rmdir()


def _lock(run_dir: Path, option: str) -> int:
    path = run_dir / LOCK
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"cannot write into {run_dir}: {error.strerror}; name another {option}") from error
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not inherited by forked processes
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(descriptor)
            holder = path.read_text().strip() or "another process"
            raise InputError(
                f"{run_dir} is in use by {holder}; wait until it ends, stop it, or name another {option}"
            ) from error
        distributed.warn0(f"{run_dir} cannot be locked ({error.strerror}); start no second run in it")
    if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):  # the one before has just ended
        os.close(descriptor)
        return _lock(run_dir, option)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor
