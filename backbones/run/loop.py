"""The training loop: steps, and in between logging, evaluation and checkpoints. All learning is in `train_step`.

A training is a generator: it yields each step that it waits for, and is sent the result. So one loop can compute its
steps one by one, and another those of several trainings at once.
"""

import shlex
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

import backbones.distributed as distributed
from backbones.experiment import Experiment, Program
from backbones.gradient import with_noise_scale
from backbones.run.checkpoint import SaveError
from backbones.run.preemption import Preempted
from backbones.run.run_log import RunLog
from backbones.run.spikes import BadStep
from backbones.train_step import TrainState, TrainStep
from backbones.types import Batch, Metrics, Weights

T = TypeVar("T")


class StepCall(NamedTuple):
    """What a training waits for: the result of `train_step(state, batch)`."""

    train_step: TrainStep
    state: TrainState
    batch: Batch


Training = Generator[StepCall, tuple[TrainState, Metrics], T]


def complete(training: Training[T]) -> T:
    """Compute the steps that a training waits for, and return what it returns."""
    with closing(training):
        try:
            call = next(training)
            while True:
                result = call.train_step(call.state, call.batch)
                del call  # else it would keep the old state in memory during an evaluation
                call = training.send(result)
        except StopIteration as end:
            return end.value


class Diverged(RuntimeError):
    """The loss, a gradient or an update is not finite. The message names the step and the last good checkpoint."""


class GoBack(Exception):
    """A step went wrong, and the experiment says to go back before it."""

    def __init__(self, bad: BadStep, state: TrainState) -> None:
        super().__init__(bad.reason)
        self.bad, self.state = bad, state


def train(
    state: TrainState,
    experiment: Experiment,
    program: Program,
    log: RunLog,
    *,
    num_steps: int,
    preempted: Callable[[], bool],
) -> Training[tuple[TrainState, dict[str, float]]]:
    """Train from the step of `state` to `num_steps`; evaluate and save after the last step as well.

    `state` is donated (see `jit`), and `program.state` is not used. Where `preempted()` is true on any rank, all ranks
    finish the step, save and stop. Steps that the experiment passes over leave the state as it is, but for the step
    count.

    Returns:
        The last state and its held-out metrics, with `images_per_second` of training.

    Raises:
        Diverged: a step was not finite, and the experiment says stop.
        GoBack: a step was not finite or a spike, and the experiment says to go back.
        SaveError: a checkpoint could not be written, and the experiment says stop, or `preempted()` was true.
        Preempted: `preempted()` was true, and the state is saved.
    """

    checkpoints, writer = log.checkpoints, log.writer

    def save(metrics: dict[str, float], weights: Weights | None) -> None:
        finish_save(experiment, log)
        since_log, recent_losses = log.means.to_json(), log.spikes.recent
        checkpoints.save(state, metrics, weights=weights, since_log=since_log, recent_losses=recent_losses)

    if not checkpoints.steps():  # a run that was started can be resumed, however early it dies
        save({}, program.weights_of(state) if int(state.step) else None)
    log.timer.start()
    images = 0  # since the device was last waited for
    test_metrics: dict[str, float] = {}
    for step in range(int(state.step) + 1, num_steps + 1):
        interrupted = distributed.any_rank_async(lambda: preempted() or checkpoints.failed)
        if step in experiment.pass_over:
            state.step.add_(1)  # in place: a CUDA graph reads this memory
        else:
            state, metrics = yield StepCall(program.train_step, state, program.batches(step - 1))
            log.means.add(metrics)
            log.spikes.add(step, metrics)
            images += experiment.batch_size
        writer.step_done()
        is_last = step == num_steps
        stop_due = False
        if interrupted():
            finish_save(experiment, log)
            stop_due = distributed.any_rank(preempted())
        log_due = step % experiment.log_every == 0
        eval_due = step % experiment.eval_every == 0 or is_last
        save_due = step % experiment.save_every == 0 or is_last or stop_due
        if not (log_due or eval_due or save_due):
            continue

        bad_steps = log.spikes.bad_steps()
        log.timer.stop(images)
        images = 0
        for bad in bad_steps:
            handle_bad_step(bad, state, experiment, log, num_steps=num_steps)
        if log_due:
            writer.write("train", step, {**with_noise_scale(log.means.take()), "images_per_second": log.timer.rate()})
        weights = program.weights_of(state) if eval_due or save_due else None
        if eval_due:
            test_metrics = program.evaluate(state, weights)
            writer.write("test", step, test_metrics)
        if save_due:
            save(test_metrics if eval_due else {}, weights)
        if stop_due and not is_last:
            checkpoints.wait()  # if that fails it is an error: the state is lost with this process
            raise stopped_after(step, num_steps, checkpoints.folder)
        log.timer.start()
    finish_save(experiment, log)
    return state, {**(test_metrics or program.evaluate(state)), "images_per_second": log.timer.mean_rate()}


def stopped_after(step: int, num_steps: int, folder: Path) -> Preempted:
    """What to raise when a state is saved in a folder of checkpoints, because a run was asked to stop."""
    return Preempted(
        f"stopped after step {step} of {num_steps}, saved in {folder}; resume with "
        f"--run-dir {shlex.quote(str(folder.parent))} --resume"
    )


def finish_save(experiment: Experiment, log: RunLog) -> None:
    """Wait until the latest checkpoint is written; a failure is an error or a warning, as the experiment says."""
    try:
        log.checkpoints.wait()
    except SaveError as error:
        if experiment.on_save_error == "stop":
            raise
        log.writer.print(f"warning: {error}")


def handle_bad_step(bad: BadStep, state: TrainState, experiment: Experiment, log: RunLog, *, num_steps: int) -> None:
    """Print and record a step that went wrong, and raise `Diverged` or `GoBack` if training cannot go on from here."""
    skipped = experiment.nonfinite == "skip" and not bad.finite
    log.writer.print(f"step {bad.step}/{num_steps}  {'skipped: ' if skipped else ''}{bad.reason}")
    if not (bad.finite or skipped or experiment.rewind):
        give_up(bad, log, "Skip such steps with --nonfinite skip, or go back before them with --rewind 10")
    finish_save(experiment, log)
    if experiment.rewind and not skipped:
        raise GoBack(bad, state)
    log.report_bad_step(bad)


def give_up(bad: BadStep, log: RunLog, hint: str) -> NoReturn:
    """Report a step after which the run cannot go on, and raise `Diverged` when the last good checkpoint is saved."""
    with suppress(SaveError):  # the divergence is what to report
        log.checkpoints.wait()
    saved, folder = log.checkpoints.steps(), log.checkpoints.folder
    log.report_bad_step(bad)
    distributed.barrier()  # when one rank ends, torchrun ends the others, and rank 0 may still be writing
    good = f"the last good checkpoint is step {saved[-1]} in {folder}" if saved else "nothing is saved"
    raise Diverged(
        f"{bad.reason} at step {bad.step}; {good}. {hint}; or start a new run, or one with --init-from, with a lower "
        "--optim.lr or --clip 1"
    )
