"""The checkpoints of one run: saving in the background, deleting old ones, and restoring."""

import importlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import backbones.distributed as distributed
from backbones.data import DataInfo
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.run.checkpoint.arrays import Arrays, load_arrays, to_arrays
from backbones.run.checkpoint.find import Which, best_step, find_checkpoint, join_steps, list_steps, read_manifests
from backbones.run.checkpoint.folder import (
    Checkpoint,
    CorruptCheckpoint,
    Manifest,
    delete_checkpoint,
    delete_temporary,
    read_checkpoint,
    write_checkpoint,
)
from backbones.train_step import TrainState
from backbones.types import Weights

SUPERSEDED = "superseded"
"""Folder for the checkpoints after the step from which a run was resumed."""


class SaveError(InputError):
    """A checkpoint could not be written. Earlier ones are unchanged."""


class Checkpoints:
    """The checkpoints of one run, each in a sub-folder of `folder`: rank 0 alone reads and writes them.

    The experiment, which says how many are kept, and the `info` of its data set are stored in each of them.
    """

    def __init__(self, folder: Path, *, experiment: Experiment, info: DataInfo) -> None:
        self.folder = folder
        self.experiment = experiment
        self._info = info
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._pending: tuple[int, Future] | None = None
        if distributed.is_main():
            # Not in the writer thread: Python 3.11 can fail to parse while another thread compiles.
            importlib.import_module("backbones.run.checkpoint.orbax_state")
            delete_temporary(folder)

    def save(
        self,
        state: TrainState,
        metrics: dict[str, float],
        *,
        weights: Weights | None = None,
        since_log: dict[str, Any] | None = None,
        recent_losses: Sequence[float] = (),
    ) -> None:
        """Copy `state`; a thread then writes it to the disk. Waits for the previous save if it is still running.

        `weights` are the ones that are evaluated; None for those of the state. The rest is explained in `Manifest`.

        Raises:
            SaveError: the previous save failed, and `wait` has not raised its error yet.
        """
        self.wait()
        if distributed.is_main():
            has_average = weights is not None and weights[0] is not state.params
            arrays = to_arrays(state, weights if has_average else None)
            step = int(arrays["step"])
            manifest = Manifest(step, metrics, self.experiment.to_json(), self._info, since_log or {}, [*recent_losses])
            self._pending = step, self._writer.submit(self._write, arrays, manifest)

    def _write(self, arrays: Arrays, manifest: Manifest) -> None:
        delete_temporary(self.folder)
        write_checkpoint(self.folder / str(manifest.step), arrays, manifest)
        with suppress(OSError):  # the checkpoint is saved; the next save tries again to delete old ones
            for old in self._to_delete():
                delete_checkpoint(self.folder / str(old))

    def _to_delete(self) -> list[int]:
        manifests, every = read_manifests(self.folder), self.experiment.keep_every
        steps = [*manifests]
        kept = {*steps[-self.experiment.keep :], *self._scheduled(steps), best_step(manifests)}
        kept |= {step for step, manifest in manifests.items() if manifest is None}  # it may be the best
        return [step for step in steps if step not in kept and not (every and step % every == 0)]

    def _scheduled(self, steps: list[int]) -> list[int]:
        """The last of these steps that a run which is never stopped saves and keeps as well."""
        return [step for step in steps if step % self.experiment.save_every == 0][-self.experiment.keep :]

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints of the run, in ascending order, as rank 0 sees them."""
        return distributed.on_main(lambda: list_steps(self.folder))

    @property
    def failed(self) -> bool:
        """Whether the pending save has failed already; only rank 0 can know."""
        return self._pending is not None and self._pending[1].done() and self._pending[1].exception() is not None

    def wait(self) -> None:
        """Wait until the pending save is on the disk; to be called on all ranks.

        Raises:
            SaveError: it failed; raised on all ranks.
        """
        distributed.on_main(self._wait)

    def _wait(self) -> None:
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        error = future.exception()
        if error is not None:
            reason = getattr(error, "strerror", None) or repr(error)
            raise SaveError(
                f"could not save step {step} in {self.folder}: {reason}; earlier checkpoints are unchanged. "
                "Fix the disk and continue with --resume latest, or train without checkpoints with "
                "--on-save-error continue"
            ) from error

    def restore(
        self, like: TrainState, which: Which = "latest", *, num_steps: float = math.inf
    ) -> tuple[TrainState, Manifest]:
        """Copy a checkpoint into the memory of `like`, which has its structure.

        `auto` is the newest intact one, with a warning for each corrupt one; a path may be that of a checkpoint or of
        another run. To train on from there, call `supersede_after`.

        Returns:
            The state, and what was saved beside it.

        Raises:
            InputError: there is no such checkpoint, or it is corrupt, or of another model or optimizer, or of a step
                after `num_steps`.
        """

        def find() -> Checkpoint:
            found = self._read_first_intact(list_steps(self.folder)[::-1]) if which == "auto" else self._read(which)
            step = found.manifest.step
            if step > num_steps:
                raise InputError(
                    f"{found.path} is of step {step}, and the run has {num_steps} steps; give more --steps, or go back "
                    "with --resume STEP"
                )
            return found

        return self._restore(like, find)

    def restore_before(self, like: TrainState, step: int) -> tuple[TrainState, Manifest]:
        """`restore` of the newest intact checkpoint up to a step, or of the one after it where there is none.

        Those that were saved when the run was stopped do not count, so that it ends in the same bits without a stop.

        Raises:
            InputError: there is no intact checkpoint.
        """

        def find() -> Checkpoint:
            steps = self._scheduled(list_steps(self.folder)) or list_steps(self.folder)
            before = [each for each in steps if each <= step]
            return self._read_first_intact(before[::-1] + steps[len(before) :])

        return self._restore(like, find)

    def _restore(self, like: TrainState, find: Callable[[], Checkpoint]) -> tuple[TrainState, Manifest]:
        self.wait()
        checkpoint = distributed.on_main(find)
        return load_arrays(like, checkpoint.arrays), checkpoint.manifest

    def _read(self, which: Which) -> Checkpoint:
        path = find_checkpoint(self.folder.parent, which)
        try:
            return read_checkpoint(path)
        except CorruptCheckpoint as error:
            intact = [step for step in list_steps(path.parent) if _is_intact(path.parent / str(step))]
            hint = f"intact checkpoints: {join_steps(intact)}; use --resume STEP, or auto for the newest of them"
            raise CorruptCheckpoint(f"{error}; {hint}") from error

    def _read_first_intact(self, steps: Sequence[int]) -> Checkpoint:
        for step in steps:
            try:
                return read_checkpoint(self.folder / str(step))
            except CorruptCheckpoint as error:
                distributed.warn0(f"{error}; trying another one")
        raise InputError(f"there is no intact checkpoint in {self.folder}; start again with another --run-dir")

    def supersede_after(self, step: int) -> None:
        """Move the checkpoints of later steps into the sub-folder `superseded`, as STEP, STEP-2, ..."""
        superseded = self.folder / SUPERSEDED
        steps = list_steps(self.folder) if distributed.is_main() else []
        for later in reversed(steps):  # latest first: what is left after a kill has no gap
            if later > step:
                superseded.mkdir(exist_ok=True)
                names = (str(later) if number == 1 else f"{later}-{number}" for number in count(1))
                free = next(superseded / name for name in names if not (superseded / name).exists())
                (self.folder / str(later)).rename(free)

    def close(self) -> None:
        """Wait until the pending save is written; its error is lost if `wait` was not called."""
        self._writer.shutdown()


def _is_intact(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except CorruptCheckpoint:
        return False
    return True
