"""Save on a disk that fails at the first file operation, then at the second, ...

`PYTHONPATH=.:tests python tests/helpers/disk_faults.py FOLDER`

From that operation on every one fails until the save is over, so that deleting what was written may fail as well. The
only output is a line for each kind of fault, with the number of saves that it was tried on.
"""

import dataclasses
import errno
import itertools
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from backbones.data import digits
from backbones.run.checkpoint import Checkpoints, SaveError, list_steps, read_checkpoint
from backbones.train_step import TrainState
from experiments.digits import digits_vit_tiny

KEEP = 2

WRITES, DELETES, READS = {"os.mkdir", "os.rename", "open"}, {"os.remove", "os.rmdir"}, {"os.scandir", "open to read"}
FAILING = {errno.ENOSPC: WRITES, errno.EROFS: WRITES | DELETES, errno.EIO: WRITES | DELETES | READS}
"""Error -> the events of `sys.addaudithook` that end in it on a full, a read-only and a broken disk."""


class Disk:
    """An audit hook that fails in place of the file operations in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._error, self._good = folder, None, 0
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple) -> None:
        if self._error is None:
            return
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            event = "open to read"
        if event not in FAILING[self._error]:
            return
        path = args[0]  # relative to an open folder, or that folder, in `shutil.rmtree`
        if isinstance(path, int) or not os.path.isabs(path) or Path(path).is_relative_to(self._folder):
            self._good -= 1
            if self._good < 0:
                raise OSError(self._error, os.strerror(self._error), path)

    @contextmanager
    def failing(self, error: int, good: int) -> Iterator[Callable[[], bool]]:
        """Let so many operations pass and fail all others; the yielded function tells whether there were any."""
        self._error, self._good = error, good
        try:
            yield lambda: self._good < 0
        finally:
            self._error = None


@contextmanager
def no_file_larger_than(size: int) -> Iterator[Callable[[], bool]]:
    """Cut off each file there, in the middle of a write: the system itself does it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield lambda: True
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def make_state(step: int) -> TrainState:
    return TrainState(torch.tensor(step), torch.tensor(0), {"weight": torch.randn(30, 20).bfloat16()}, {}, ())


def contents(folder: Path) -> dict[int, dict[Path, bytes]]:
    """Step -> the files of its checkpoint."""
    return {
        step: {path: path.read_bytes() for path in (folder / str(step)).rglob("*") if path.is_file()}
        for step in list_steps(folder)
    }


def save(checkpoints: Checkpoints, error: int, fault: AbstractContextManager[Callable[[], bool]]) -> bool:
    """Save once and check what is on the disk; returns whether the fault occurred."""
    folder = checkpoints.folder
    before = contents(folder)
    step, message = max(before, default=0) + 1, ""
    with fault as has_occurred:
        try:
            checkpoints.save(make_state(step), {})
            checkpoints.wait()
        except SaveError as save_error:
            message = str(save_error)
        occurred = has_occurred()
    after = contents(folder)
    start = f"could not save step {step} in {folder}: {os.strerror(error)}; earlier checkpoints are unchanged. "
    assert message.startswith(start) and "\n" not in message if message else step in after, message
    kept = list(before)[1 - KEEP :] if step in after else list(before)
    assert occurred or not message
    assert set(kept) <= set(after) <= {*before, step} and (step in after) == (not message), (step, after.keys())
    assert all(after[step] == before[step] for step in before if step in after)
    if step in after:
        read_checkpoint(folder / str(step))
    if error not in (errno.EROFS, errno.EIO):  # which leave a temporary folder to the next save
        assert all(path.name.isdecimal() for path in folder.iterdir())
    return occurred


def main(folder: Path) -> None:
    experiment = dataclasses.replace(digits_vit_tiny, keep=KEEP, save_every=1)
    disk, checkpoints = Disk(folder), Checkpoints(folder, experiment=experiment, info=digits().info)
    for step in range(KEEP):  # from now on each save deletes a checkpoint
        checkpoints.save(make_state(step), {})
    for error in FAILING:
        num_saves = next(n for n in itertools.count() if not save(checkpoints, error, disk.failing(error, good=n)))
        print(errno.errorcode[error], num_saves)
        assert len(list(folder.iterdir())) == KEEP, "the save after the last fault has cleaned up"
    sizes = {len(content) for files in contents(folder).values() for content in files.values()}
    for size in sorted(sizes):
        save(checkpoints, errno.EFBIG, no_file_larger_than(size - 1))
    print("EFBIG", len(sizes))
    checkpoints.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
