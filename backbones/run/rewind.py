"""Going back before a step that went wrong, and passing over it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import backbones.distributed as distributed
import backbones.tree as tree
from backbones.errors import InputError
from backbones.experiment import Experiment, Program
from backbones.run.checkpoint import Manifest, join_steps
from backbones.run.config import read_experiment, write_config
from backbones.run.loop import GoBack, Training, give_up, train
from backbones.run.run_dir import CONFIG
from backbones.run.run_log import RunLog
from backbones.train_step import TrainState

MOST_REWINDS = 10
"""How often a process goes back before it gives up."""


def train_and_rewind(
    state: TrainState,
    experiment: Experiment,
    program: Program,
    log: RunLog,
    *,
    num_steps: int,
    preempted: Callable[[], bool],
) -> Training[tuple[TrainState, dict[str, float]]]:
    """`train`, and where it asks to go back, again from an earlier checkpoint.

    That is the newest intact one before the steps to pass over: the one that went wrong and those before it,
    `experiment.rewind` in all; or where there is none the oldest, and then only steps after it are passed over. They
    become a part of the experiment, in `config.json` and in the checkpoints to come, so that a run that is resumed or
    reproduced ends in the same bits. All ranks go back together, since their losses are equal.

    Raises:
        Diverged: it went back `MOST_REWINDS` times, and a step went wrong again.
    """
    states, num_rewinds = [state], 0
    del state  # it would be kept in memory to the end
    while True:
        try:
            return (yield from train(states.pop(), experiment, program, log, num_steps=num_steps, preempted=preempted))
        except GoBack as error:
            bad, states = error.bad, [error.state]
        if num_rewinds == MOST_REWINDS:
            give_up(bad, log, f"Pass over more steps: the run went back {MOST_REWINDS} times")
        num_rewinds += 1
        before = bad.step - (experiment.rewind or 1)
        states[0], saved = log.checkpoints.restore_before(tree.with_own_memory(states[0]), before)
        log.checkpoints.supersede_after(saved.step)
        passed = range(max(before, saved.step) + 1, bad.step + 1)
        experiment = dataclasses.replace(experiment, pass_over=tuple(sorted({*experiment.pass_over, *passed})))
        log.checkpoints.experiment = experiment
        if distributed.is_main():
            write_config(log.checkpoints.folder.parent, experiment)
        log.writer.go_back(saved.step)
        over = "step" if len(passed) == 1 else f"steps {passed[0]} to"
        log.writer.print(f"back to step {saved.step}, to pass over {over} {bad.step}")
        log.report_bad_step(bad)
        log.restart(saved, experiment)


def with_passed_over(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with the steps that the run has noted that it passes over, after it went back, unless other ones
    are given."""
    config = folder / CONFIG
    noted = distributed.on_main(lambda: read_experiment(config).pass_over if config.exists() else ())
    return dataclasses.replace(experiment, pass_over=noted) if {*experiment.pass_over} <= {*noted} else experiment


def check_passed_over(experiment: Experiment, saved: Manifest) -> None:
    """Raise InputError if the steps to pass over are others than in the checkpoint, and done already."""
    others = {*experiment.pass_over} ^ {*saved.experiment.get("pass_over", ())}
    if done := sorted(step for step in others if step <= saved.step):
        raise InputError(
            f"--pass-over differs from that of the checkpoint of step {saved.step} in steps that are done: "
            f"{join_steps(done)}; go back before them with --resume STEP, or leave it as it was"
        )
