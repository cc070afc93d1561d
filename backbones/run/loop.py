"""The training loop: steps, and in between logging, evaluation and checkpoints. All learning is in `train_step`."""

import math
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

import backbones.distributed as distributed
from backbones.experiment import Experiment, Program
from backbones.run.checkpoint import Checkpoints, SaveError
from backbones.run.metric_writer import MetricWriter
from backbones.run.preemption import Preempted
from backbones.train_step import TrainState
from backbones.types import Metrics, Weights


class Diverged(RuntimeError):
    """The loss, a gradient or an update is not finite. The message names the step and the last good checkpoint."""


def train(
    state: TrainState,
    experiment: Experiment,
    program: Program,
    *,
    num_steps: int,
    means: "RunningMeans",
    preempted: Callable[[], bool],
    writer: MetricWriter,
    checkpoints: Checkpoints,
) -> tuple[TrainState, dict[str, float]]:
    """Train from the step of `state` to `num_steps`.

    What is due every n steps is also due after the last one, but for logging.

    Args:
        state: where to start; used up.
        experiment: says what is due when, and what is an error.
        program: the functions; its own state is not used.
        num_steps: steps of the run.
        means: of the training metrics since the last line.
        preempted: whether this process was asked to stop: the step is then saved, on all ranks.
        writer: where metrics go.
        checkpoints: where states go.

    Returns:
        The last state and its held-out metrics, with `images_per_second` of training.

    Raises:
        Diverged: a step was not finite, and the experiment says stop.
        SaveError: a checkpoint could not be written, and the experiment says stop.
        Preempted: `preempted` was true on some rank.
    """

    def settle() -> None:
        try:
            checkpoints.wait()
        except SaveError as error:
            if experiment.on_save_error == "stop":
                raise
            writer.print(f"warning: {error}")

    def save(metrics: dict[str, float], weights: Weights | None) -> None:
        settle()
        checkpoints.save(state, metrics, weights=weights, since_log=means.to_json())

    if not checkpoints.steps():
        save({}, None)  # a run that was started can be resumed, however early it dies
    timer = Timer()
    flags: list[Tensor] = []  # of the steps since the device was last waited for
    test_metrics: dict[str, float] = {}
    for step in range(int(state.step) + 1, num_steps + 1):
        state, metrics = program.train_step(state, program.batches(step - 1))
        writer.step_done()
        timer.add(experiment.batch_size)
        means.add(metrics)
        flags.append(metrics["nonfinite"])
        is_last = step == num_steps
        stop_due = False
        if distributed.any_rank(preempted() or checkpoints.failed):
            settle()
            stop_due = distributed.any_rank(preempted())
        log_due = step % experiment.log_every == 0
        eval_due = step % experiment.eval_every == 0 or is_last
        save_due = step % experiment.save_every == 0 or is_last or stop_due
        if not (log_due or eval_due or save_due):
            continue

        nonfinite, flags = torch.stack(flags).tolist(), []
        timer.stop()
        for bad_step in (step - len(nonfinite) + 1 + i for i, flag in enumerate(nonfinite) if flag):
            if experiment.nonfinite == "stop":
                raise _diverged(bad_step, checkpoints)
            writer.print(f"step {bad_step}/{num_steps}  skipped: the loss, a gradient or an update is not finite")
        if log_due:
            writer.write("train", step, {**means.take(), "images_per_second": timer.rate})
        weights = program.weights_of(state) if eval_due or save_due else None
        if eval_due:
            test_metrics = program.evaluate(state, weights)
            writer.write("test", step, test_metrics)
        if save_due:
            save(test_metrics if eval_due else {}, weights)
        if stop_due and not is_last:
            settle()
            raise Preempted(
                f"stopped after step {step} of {num_steps}, saved in {checkpoints.folder}; resume with "
                f"--run-dir {shlex.quote(str(checkpoints.folder.parent))} --resume"
            )
        timer.start()
    settle()
    return state, {**(test_metrics or program.evaluate(state)), "images_per_second": timer.mean_rate}


def _diverged(step: int, checkpoints: Checkpoints) -> Diverged:
    with suppress(SaveError):  # this matters more
        checkpoints.wait()
    return Diverged(
        f"the loss, a gradient or an update is not finite at step {step}; the last good checkpoint is step "
        f"{checkpoints.steps()[-1]} in {checkpoints.folder}. Lower --optim.lr, clip with --clip 1, or skip such "
        "steps with --nonfinite skip"
    )


class RunningMeans:
    """Means of the training metrics since the last line of the log, summed on the device.

    Args:
        stored: from `to_json`, of the run that is resumed.
    """

    def __init__(self, stored: dict[str, Any]) -> None:
        self._count = stored.get("count", 0)
        self._sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in stored.get("sums", {}).items()}

    def add(self, metrics: Metrics) -> None:
        """Count the metrics of one more step."""
        for name, value in metrics.items():
            value = value.to(torch.float64)
            self._sums[name] = value if name not in self._sums else self._sums[name].to(value.device) + value
        self._count += 1

    def take(self) -> dict[str, float]:
        """The means; then start again."""
        means = {name: value.item() / self._count for name, value in self._sums.items()}
        self._count, self._sums = 0, {}
        return means

    def to_json(self) -> dict[str, Any]:
        """Plain data, to be stored in a checkpoint: a resumed run then writes the same lines."""
        return {"count": self._count, "sums": {name: value.item() for name, value in self._sums.items()}}


class Timer:
    """Images a second of training alone, without evaluation and saving."""

    def __init__(self) -> None:
        self.rate = math.nan
        """Of the stretch between the latest `start` and `stop`."""
        self.mean_rate = math.nan
        """Of all stretches, but the first if there are more: it compiles and warms up."""
        self._num_stretches, self._total_images, self._total_seconds = 0, 0, 0.0
        self.start()

    def start(self) -> None:
        """Begin a stretch of training."""
        self._images, self._since = 0, time.perf_counter()

    def add(self, images: int) -> None:
        """Count images that were trained on."""
        self._images += images

    def stop(self) -> None:
        """End a stretch; call it when the device has finished."""
        seconds = time.perf_counter() - self._since
        self._num_stretches += 1
        if self._num_stretches <= 2:
            self._total_images, self._total_seconds = 0, 0.0
        self._total_images += self._images
        self._total_seconds += seconds
        self.rate, self.mean_rate = self._images / seconds, self._total_images / self._total_seconds
