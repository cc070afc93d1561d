"""The clock: when to step, log, evaluate and save. All that is learnt happens in `train_step`."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

import backbones.distributed as distributed
import backbones.random as random
from backbones.checkpoint import Checkpoints, SaveError
from backbones.data import Split, eval_batches, train_batch
from backbones.interrupt import Interrupted
from backbones.metric_writer import MetricWriter
from backbones.optim import evaluation_params
from backbones.train_step import EvalStep, EvalSums, ModelStateStep, TrainState, TrainStep
from backbones.types import ModelState, Params

Evaluate = Callable[[TrainState], dict[str, float]]

Statistics = Callable[[Params, ModelState], ModelState]


class Clock(NamedTuple):
    """When things happen, in steps. What is due every n steps also happens after the last one, but for logging."""

    num_steps: int
    log_every: int
    eval_every: int
    save_every: int


class Diverged(RuntimeError):
    """The loss, a gradient or an update is not finite. The message names the step and the last good checkpoint."""


def train(
    state: TrainState,
    split: Split,
    *,
    train_step: TrainStep,
    evaluate: Evaluate,
    clock: Clock,
    seed: int,
    batch_size: int,
    stop_at_nonfinite: bool,
    stop_at_save_error: bool,
    interrupted: Callable[[], bool],
    writer: MetricWriter,
    checkpoints: Checkpoints,
) -> tuple[TrainState, dict[str, float]]:
    """Train from wherever `state` is to `clock.num_steps`.

    Args:
        state: where to start; its memory is used up.
        split: training samples.
        train_step: from `make_train_step`.
        evaluate: state -> metrics of the held-out samples.
        clock: what is due when.
        seed: of the order of samples and of dropout.
        batch_size: samples a step, over all ranks and micro-batches.
        stop_at_nonfinite: whether to raise when the loss or a gradient is not finite.
        stop_at_save_error: whether to raise when a checkpoint cannot be written, or to warn and go on.
        interrupted: whether this process was asked to stop: the step is then saved, on all ranks.
        writer: where metrics go.
        checkpoints: where states go.

    Returns:
        The last state and its held-out metrics, with `images_per_second` of training.

    Raises:
        Diverged: see `stop_at_nonfinite`.
        SaveError: see `stop_at_save_error`.
        Interrupted: see `interrupted`.
    """

    def save(metrics: dict[str, float]) -> None:
        settle()
        checkpoints.save(state, metrics)

    def settle() -> None:
        try:
            checkpoints.wait()
        except SaveError as error:
            if stop_at_save_error:
                raise
            writer.say(f"warning: {error}")

    if not distributed.any_rank(bool(checkpoints.steps())):
        save({})  # a run that was begun can be resumed, however early it dies
    stopwatch = Stopwatch()
    nonfinite: list[Tensor] = []  # one flag a step since the last look: looking waits for the device
    test_metrics: dict[str, float] = {}
    for step in range(state.step.item() + 1, clock.num_steps + 1):
        random.seed_torch(seed, 2, step, distributed.rank())
        batch = train_batch(split, seed=seed, step=step - 1, batch_size=batch_size)
        state, metrics = train_step(state, batch)
        writer.step_done()
        stopwatch.add(batch_size)
        nonfinite.append(metrics["nonfinite"])
        is_last = step == clock.num_steps
        stop_due = False
        if distributed.any_rank(interrupted() or checkpoints.failed):
            settle()
            stop_due = distributed.any_rank(interrupted())
        log_due = step % clock.log_every == 0
        eval_due = step % clock.eval_every == 0 or is_last
        save_due = step % clock.save_every == 0 or is_last or stop_due
        if not (log_due or eval_due or save_due):
            continue

        flags, nonfinite = torch.stack(nonfinite).tolist(), []
        stopwatch.stop()
        for bad_step in (step - len(flags) + 1 + i for i, flag in enumerate(flags) if flag):
            if stop_at_nonfinite:
                raise _diverged(bad_step, checkpoints)
            writer.say(f"step {bad_step}/{clock.num_steps}  skipped: the loss, a gradient or an update is not finite")
        if log_due:
            values = {name: value.item() for name, value in metrics.items()}
            writer.write("train", step, {**values, "images_per_second": stopwatch.rate})
        if eval_due:
            test_metrics = evaluate(state)
            writer.write("test", step, test_metrics)
        if save_due:
            save(test_metrics if eval_due else {})
        if stop_due and not is_last:
            settle()
            raise Interrupted(f"interrupted; step {step} of {clock.num_steps} is saved in {checkpoints.folder}")
        stopwatch.start()
    settle()
    return state, {**(test_metrics or evaluate(state)), "images_per_second": stopwatch.mean_rate}


def _diverged(step: int, checkpoints: Checkpoints) -> Diverged:
    with suppress(SaveError):  # this matters more
        checkpoints.wait()
    return Diverged(
        f"the loss, a gradient or an update is not finite at step {step}; the last good checkpoint is step "
        f"{checkpoints.steps()[-1]} in {checkpoints.folder}. Lower --optim.lr, clip with --clip 1, or skip such "
        "steps with --nonfinite skip"
    )


class Stopwatch:
    """Images a second of training alone, without evaluating and saving."""

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


STATISTICS_BATCHES = 50
"""Batches from which the statistics of averaged parameters are estimated. Running means of momentum 0.1 have then
forgotten those of the training (0.9^50 = 0.005)."""


def make_statistics(model_state_step: ModelStateStep, split: Split, *, batch_size: int) -> Statistics:
    """(params, model_state) -> model_state: BatchNorm statistics of other parameters than those of the training.

    From training images without augmentation (Izmailov et al., arXiv 1803.05407, section 3.2).

    Args:
        model_state_step: from `make_model_state_step`.
        split: training samples.
        batch_size: samples a batch, over all ranks.
    """

    def statistics(params: Params, model_state: ModelState) -> ModelState:
        if not model_state:
            return model_state
        for step in range(STATISTICS_BATCHES):
            batch = train_batch(split, seed=0, step=step, batch_size=batch_size)
            model_state = model_state_step(params, model_state, batch)
        return distributed.mean_over_ranks(model_state)

    return statistics


def make_evaluate(eval_step: EvalStep, split: Split, *, batch_size: int, statistics: Statistics) -> Evaluate:
    """state -> `loss` (nats), `top1` and `top5` in [0, 1], each sample counted once over all ranks.

    Where the optimizer keeps an average of the parameters, the average is evaluated.

    Args:
        eval_step: from `make_eval_step`.
        split: held-out samples.
        batch_size: samples a batch, over all ranks.
        statistics: from `make_statistics`, for averages.
    """

    def evaluate(state: TrainState) -> dict[str, float]:
        with torch.no_grad():
            params, model_state = evaluation_params(state.opt_state, state.params), state.model_state
            if params is not state.params:
                model_state = statistics(params, model_state)
            batches = eval_batches(split, batch_size=batch_size)
            sums = [eval_step(params, model_state, batch) for batch in batches]
        totals = distributed.sum_over_ranks(torch.stack([torch.stack(batch_sums) for batch_sums in sums]).sum(dim=0))
        loss, top1, top5, count = EvalSums(*totals.tolist())
        return {"loss": loss / count, "top1": top1 / count, "top5": top5 / count}

    return evaluate
