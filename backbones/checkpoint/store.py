"""The checkpoints of one run: saving while the training goes on, what is kept, and going back to one."""

import os
import shutil
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import backbones.distributed as distributed
from backbones.checkpoint.arrays import Arrays, fill, to_arrays
from backbones.checkpoint.find import best_step, find_checkpoint, is_path, join_steps, list_steps
from backbones.checkpoint.folder import (
    TEMPORARY,
    Checkpoint,
    Damaged,
    delete_checkpoint,
    import_orbax,
    read_checkpoint,
    write_checkpoint,
)
from backbones.checkpoint.weights import describe_average
from backbones.errors import InputError
from backbones.train_step import TrainState

SET_ASIDE = "set-aside"
"""Folder for checkpoints of steps that a resumed run takes again."""


class SaveError(InputError):
    """A checkpoint could not be written. Those before it are as they were."""


class Checkpoints:
    """The checkpoints of one run: rank 0 writes them, all ranks can read them.

    Each holds the whole `TrainState` and the experiment. Kept are the latest ones, every so-manyth step, and the best.

    Args:
        folder: where they lie, one sub-folder a step; it exists.
        experiment: the run's configuration as plain JSON data; stored with every checkpoint.
        keep: how many of the latest to keep.
        keep_every: keep all whose step is a multiple of it; None for no such.
    """

    def __init__(self, folder: Path, *, experiment: dict[str, Any], keep: int, keep_every: int | None = None) -> None:
        import_orbax()  # here: Python 3.11 can fail to parse while another thread compiles
        self.folder = folder
        self._experiment, self._keep, self._keep_every = experiment, keep, keep_every
        self._writer = ThreadPoolExecutor(max_workers=1, initializer=_give_way)
        self._pending: tuple[int, Future] | None = None
        if distributed.is_main():
            for left_behind in folder.glob(f"*{TEMPORARY}"):  # of a process that was killed
                shutil.rmtree(left_behind)

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Write `state` under its step. Returns when the values are copied; the disk is written in the background.

        If the save before is not done yet, it is waited for.

        Raises:
            SaveError: the save before failed, and nobody has asked for its error by `wait`.
        """
        self.wait()
        if distributed.is_main():
            arrays, average = to_arrays(state), describe_average(state)
            step = int(arrays["step"])
            self._pending = step, self._writer.submit(self._write, step, arrays, metrics, average)

    def _write(self, step: int, arrays: Arrays, metrics: dict[str, float], average: dict[str, str] | None) -> None:
        path = self.folder / str(step)
        write_checkpoint(path, arrays, metrics=metrics, experiment=self._experiment, average=average)
        for old in self._superfluous():
            delete_checkpoint(self.folder / str(old))

    def _superfluous(self) -> list[int]:
        steps = self.steps()
        kept = {*steps[-self._keep :], best_step(self.folder)}
        return [step for step in steps if step not in kept and not (self._keep_every and step % self._keep_every == 0)]

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints of the run, rising."""
        return list_steps(self.folder)

    @property
    def failed(self) -> bool:
        """Whether this rank knows already that the pending save has failed."""
        return self._pending is not None and self._pending[1].done() and self._pending[1].exception() is not None

    def wait(self) -> None:
        """Wait until the pending save is on the disk; all ranks together.

        Raises:
            SaveError: it failed, on all ranks.
        """
        distributed.on_main(self._wait)

    def _wait(self) -> None:
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        error = future.exception()
        if error is not None:
            raise SaveError(self._explain(step, error)) from error

    def _explain(self, step: int, error: BaseException) -> str:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition(" [")[0]
        return (
            f"could not save step {step} in {self.folder}: {reason}; checkpoints on the disk are as they were: "
            f"{join_steps(self.steps())}. Mend that and go on with --resume latest, or train on without checkpoints "
            "with --on-save-error continue"
        )

    def restore(self, like: TrainState, which: str = "latest") -> TrainState:
        """A checkpoint, in the memory of `like`, which has the structure and devices that are wanted.

        Checkpoints of later steps are set aside, to make room for those that are to come: into a sub-folder.

        Args:
            like: a state whose memory is used.
            which: `auto` for the newest that is not damaged, with a warning for each that is; `latest`, `best` or a
                step for that one; or the path of a checkpoint or of a run elsewhere.

        Raises:
            InputError: there is no such checkpoint, or it is damaged, or of another model or optimizer.
        """
        self.wait()
        checkpoint = self._newest_good() if which == "auto" else self._read(which)
        state = fill(like, checkpoint.arrays)
        distributed.barrier()  # all ranks have read
        if distributed.is_main():
            self._set_aside_after(checkpoint.manifest.step)
        return state

    def _read(self, which: str) -> Checkpoint:
        path = find_checkpoint(Path(which)) if is_path(which) else find_checkpoint(self.folder.parent, which)
        try:
            return read_checkpoint(path)
        except Damaged as error:
            others = [step for step in list_steps(path.parent) if _is_whole(path.parent / str(step))]
            offer = f"whole are those of the steps {join_steps(others)}: --resume STEP, or auto for the newest"
            raise Damaged(f"{error}; {offer}") from error

    def _newest_good(self) -> Checkpoint:
        for step in reversed(self.steps()):
            checkpoint = None
            try:
                checkpoint = read_checkpoint(self.folder / str(step))
            except Damaged as error:
                if distributed.is_main():
                    print(f"warning: {error}; going back to the one before", file=sys.stderr)
            if not distributed.any_rank(checkpoint is None):
                return checkpoint
        raise InputError(f"there is no checkpoint in {self.folder} that is whole; start again with another --run-dir")

    def _set_aside_after(self, step: int) -> None:
        for later in self.steps():
            if later > step:
                target = self.folder / SET_ASIDE / str(later)
                target.parent.mkdir(exist_ok=True)
                delete_checkpoint(target)
                (self.folder / str(later)).rename(target)

    def close(self) -> None:
        """Wait until the disk is written; an error that nobody has asked for is lost."""
        self._writer.shutdown()


def _give_way() -> None:
    """Let this thread, and those that it starts, compute only when the training does not."""
    if sys.platform == "linux":  # elsewhere a priority is the whole process's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except Damaged:
        return False
    return True
