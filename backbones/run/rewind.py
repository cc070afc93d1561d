"""Going back before a step that went wrong, and passing over it."""

import dataclasses
from collections.abc import Callable

import backbones.distributed as distributed
import backbones.tree as tree
from backbones.experiment import Experiment, Program
from backbones.run.checkpoint import Checkpoints
from backbones.run.loop import GoBack, RunningMeans, Training, diverged, train
from backbones.run.metric_writer import MetricWriter
from backbones.run.run_dir import write_config
from backbones.run.spikes import LookInto, LossWatch
from backbones.train_step import TrainState

MOST = 10
"""How often a process goes back before it gives up."""


def train_and_rewind(
    state: TrainState,
    experiment: Experiment,
    program: Program,
    *,
    num_steps: int,
    means: RunningMeans,
    losses: LossWatch,
    look_into: LookInto,
    preempted: Callable[[], bool],
    writer: MetricWriter,
    checkpoints: Checkpoints,
) -> Training[tuple[TrainState, dict[str, float]]]:
    """`train`, and where it asks to go back, again from an earlier checkpoint.

    That is the newest intact one before the steps to pass over: the one that went wrong and those before it,
    `experiment.rewind` in all; or where there is none the oldest, and then only steps after it are passed over. They
    become a part of the experiment, in `config.json` and in the checkpoints to come, so that a run that is resumed or
    reproduced ends in the same bits. All ranks go back together, since their losses are equal.

    Raises:
        Diverged: it went back `MOST` times, and a step went wrong again.
    """
    states, num_rewinds = [state], 0
    del state  # it would be kept in memory to the end
    while True:
        try:
            return (
                yield from train(
                    states.pop(),
                    experiment,
                    program,
                    num_steps=num_steps,
                    means=means,
                    losses=losses,
                    look_into=look_into,
                    preempted=preempted,
                    writer=writer,
                    checkpoints=checkpoints,
                )
            )
        except GoBack as error:
            bad, states = error.bad, [error.state]
        if num_rewinds == MOST:
            gave_up = diverged(bad, checkpoints, f"pass over more steps: the run went back {MOST} times")
            look_into(bad)
            raise gave_up
        num_rewinds += 1
        before = bad.step - (experiment.rewind or 1)
        states[0], saved = checkpoints.restore_before(tree.with_own_memory(states[0]), before)
        checkpoints.supersede_after(saved.step)
        passed = range(max(before, saved.step) + 1, bad.step + 1)
        experiment = dataclasses.replace(experiment, pass_over=tuple(sorted({*experiment.pass_over, *passed})))
        checkpoints.experiment = experiment
        if distributed.is_main():
            write_config(checkpoints.folder.parent, experiment)
        writer.go_back(saved.step)
        over = "step" if len(passed) == 1 else f"steps {passed[0]} to"
        writer.print(f"back to step {saved.step}, to pass over {over} {bad.step}")
        look_into(bad)
        means = RunningMeans(saved.since_log)
        losses.restart(saved.recent_losses)
