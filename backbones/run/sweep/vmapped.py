"""All members of a sweep in one vmapped step; each has the folder, metrics and checkpoints of a run of its own."""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack, closing, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

from tqdm import tqdm

import backbones.tree as tree
from backbones.errors import InputError
from backbones.experiment import make_dataset
from backbones.run.checkpoint import SaveError, list_steps
from backbones.run.lock import locked
from backbones.run.loop import Diverged, StepCall, Training
from backbones.run.preemption import Preempted, handle_signals
from backbones.run.run import train_in
from backbones.run.run_dir import CHECKPOINTS
from backbones.run.sweep.jobs import DIVERGED, LOG, STOPPED, Job, record_divergence
from backbones.torch_settings import torch_settings_kept
from backbones.train_step import TrainState
from backbones.types import Metrics
from backbones.vmapped_step import draws_numbers, make_vmapped_step

KEEP = 3
"""Checkpoints that each member keeps at least: after a kill one may have written two more than another, and all are
resumed from the newest step that each of them has."""


class _Member:
    """The training of a member, which writes what it prints into a log."""

    def __init__(self, job: Job, training: Training[Any], log: TextIO) -> None:
        self._job, self._training, self._log = job, training, log
        self.was_preempted = False
        self.failure = ""

    def next_call(self, result: tuple[TrainState, Metrics] | None) -> StepCall | None:
        """The next step that it waits for, given the result of the last, or None at first; None if it has ended."""
        with redirect_stdout(self._log), redirect_stderr(self._log), suppress(StopIteration):
            try:
                return self._training.send(result)  # type: ignore[arg-type]
            except Preempted:
                self.was_preempted = True
            except Diverged as error:
                record_divergence(self._job, error)
            except (SaveError, OSError) as error:
                self.failure = str(error)
        return None


def run_vmapped(jobs: Sequence[Job]) -> dict[str, str]:
    """Run members in one step, from the latest that all have saved; what they print goes into their `log.txt`.

    A member that has diverged keeps its place in the step, with the batch of another one, so that the draws of dropout
    for the others stay the same; nothing of it is recorded.

    Returns:
        Name -> reason, of each member that could not be saved; the others go on.

    Raises:
        InputError: the members cannot share a step.
        Preempted: a signal asked to stop, and the members are saved.
    """
    jobs = [
        job._replace(experiment=dataclasses.replace(job.experiment, keep=max(job.experiment.keep, KEEP)))
        for job in jobs
    ]
    running = {i: job for i, job in enumerate(jobs) if not (job.folder / DIVERGED).exists()}
    start = _common_step(list(running.values()))
    stopping = False
    with torch_settings_kept(), ExitStack() as stack:
        device = jobs[0].experiment.init_device()
        dataset = make_dataset(jobs[0].experiment.data, device)
        step = make_vmapped_step([job.experiment for job in jobs], dataset)
        if draws_numbers(jobs[0].experiment, dataset):
            print("dropout draws other numbers in a vmapped step than in separate runs", flush=True)
        members: dict[int, _Member] = {}
        for i, job in running.items():
            stack.enter_context(locked(job.folder))
            training = train_in(
                job.folder,
                job.experiment,
                device,
                resume=start if start in list_steps(job.folder / CHECKPOINTS) else "auto",
                until=job.until,
                dataset=dataset,
                preempted=lambda: stopping,
            )
            log = stack.enter_context((job.folder / LOG).open("a"))
            members[i] = _Member(job, stack.enter_context(closing(training)), log)
        bar = stack.enter_context(closing(tqdm(total=jobs[0].until, initial=start, unit="step", disable=None)))
        preempted = stack.enter_context(handle_signals())
        states: TrainState | None = None
        results: dict[int, Any] = dict.fromkeys(members)
        while results:
            stopping = preempted()  # asked once for all, so that they stop at the same step
            calls = {i: call for i, result in results.items() if (call := members[i].next_call(result)) is not None}
            if not calls:
                break
            every = [calls.get(i, next(iter(calls.values()))) for i in range(len(jobs))]
            states = states or tree.stack([call.state for call in every])  # later those are parts of this one
            states, metrics = step(states, tree.stack([call.batch for call in every]))
            bar.update()
            pairs = list(zip(tree.unstack(states), tree.unstack(metrics), strict=True))
            results = {i: pairs[i] for i in calls}
    if any(member.was_preempted for member in members.values()):
        raise Preempted(STOPPED)
    return {jobs[i].name: member.failure for i, member in members.items() if member.failure}


def _common_step(jobs: Sequence[Job]) -> int:
    """The latest step that all have saved; 0 for one that has saved nothing yet."""
    steps = [set(list_steps(job.folder / CHECKPOINTS)) or {0} for job in jobs]
    common = set.intersection(*steps)
    if not common:
        raise InputError(
            f"the members in {jobs[0].folder.parent} have no checkpoint of the same step, from which one vmapped step "
            "could go on; continue them with --how processes or sequence"
        )
    return max(common)
