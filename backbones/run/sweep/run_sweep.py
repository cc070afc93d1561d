"""A sweep from its first member to its table, with the rungs of successive halving in between."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from backbones.errors import InputError
from backbones.run.checkpoint import list_steps
from backbones.run.config import list_changes, read_experiment
from backbones.run.lock import locked
from backbones.run.run_dir import CHECKPOINTS, CONFIG, RESULT
from backbones.run.sweep.choose import choose_how
from backbones.run.sweep.jobs import DIVERGED, Job, default_workers, read_scores, run_in_processes, run_in_sequence
from backbones.run.sweep.members import SWEEP, How, Member, Plan, Sweep, read_sweep, write_sweep
from backbones.run.sweep.plot import plot_sweep
from backbones.run.sweep.table import read_rows, write_tables
from backbones.run.sweep.vmapped import run_vmapped

CHANGED_BY_RUNNING = ("keep", "pass_over")
"""Fields of a member that a sweep or going back sets."""

VMAPPED_HALVING = (
    "--how vmap with --halving: fewer members in a vmapped step are rounded in another way, so that those that go on "
    "would not end as without the others; use --how processes or sequence"
)


def run_sweep(
    sweep: Sweep, folder: Path, *, how: Literal["auto"] | How = "auto", workers: int | None = None
) -> dict[str, str]:
    """Run the members of a sweep, or what is left of them, and write the table and the picture of their results.

    Args:
        sweep: what to run.
        folder: where it is run, or goes on.
        how: the way; auto is that in which it was begun, or the fastest of those that are possible.
        workers: processes at a time; None for as many as it was begun with, or as suit the machine.

    Returns:
        Name -> reason, of each member that failed.

    Raises:
        InputError: the members cannot be run in this way, or the folder is in use.
        Preempted: a signal asked to stop, and the members are saved.
    """
    if how == "vmap" and sweep.halving is not None:
        raise InputError(VMAPPED_HALVING)
    with locked(folder, option="--sweep-dir"):
        before = read_sweep(folder)[1] if (folder / SWEEP).exists() else Plan()
        plan = Plan(before.how if how == "auto" else how, workers or before.workers)
        if workers is not None and plan.how in ("sequence", "vmap"):
            raise InputError(f"--workers is for processes, and the way of this sweep is {plan.how}; leave it out")
        if plan.how == "vmap" != before.how and _is_begun(sweep, folder):
            raise InputError(
                f"--how vmap: members in {folder} were begun as separate runs; continue by sequence or processes"
            )
        _check_members(sweep, folder)
        write_sweep(folder, sweep, plan)
        try:
            failures = _run_rungs(sweep, folder, plan)
        except InputError:
            if not _is_begun(sweep, folder):
                write_sweep(folder, sweep, before)  # this way may not be possible, but another
            raise
        rows = read_rows(sweep, folder, failures)
        print(f"\n{write_tables(sweep, rows, folder)}")
        plot_sweep(sweep, rows, folder / "sweep.png")
        for name, reason in failures.items():
            print(f"{name} failed: {reason}")
        print(f"see table.md, table.csv and sweep.png in {folder}", flush=True)
    return failures


def _run_rungs(sweep: Sweep, folder: Path, plan: Plan) -> dict[str, str]:
    """Run every rung, and choose who goes on to the next."""
    failures: dict[str, str] = {}
    left, sizes = sweep.members, sweep.rungs()
    workers = plan.workers or default_workers(len(sweep.members), sweep.experiment)
    for rung, next_size in enumerate([*sizes[1:], 0]):
        jobs = [Job(folder / each.name, each.experiment, sweep.rung_ends(each)[rung]) for each in left]
        is_last = next_size == 0
        waiting = [job for job in jobs if not _is_done(job, is_last=is_last)]
        if waiting and plan.how is None:
            plan = plan._replace(how=choose_how(sweep, folder, workers, may_vmap=not _is_begun(sweep, folder)))
            write_sweep(folder, sweep, plan)
        done = f"; {len(jobs) - len(waiting)} are done" if len(waiting) < len(jobs) else ""
        ends = sorted({job.until for job in jobs})
        print(f"\n{len(jobs)} members up to step {', '.join(map(str, ends))}{done}", flush=True)
        if waiting and plan.how == "vmap":
            failures |= run_vmapped(jobs)
        elif waiting and plan.how == "processes":
            failures |= run_in_processes(waiting, workers)
        elif waiting:
            failures |= run_in_sequence(waiting)
        if not is_last:
            left = _best(left, jobs, next_size)
        if not left:
            break
    return failures


def _is_begun(sweep: Sweep, folder: Path) -> bool:
    """Whether a step of a member is saved: then another way would go on with other rounding."""
    return any(list_steps(folder / member.name / CHECKPOINTS)[-1:] > [0] for member in sweep.members)


def _check_members(sweep: Sweep, folder: Path) -> None:
    """Raise InputError if the folder of a member holds a run with other settings."""
    for member in sweep.members:
        path = folder / member.name / CONFIG
        if not path.is_file():
            continue
        changes = list_changes(read_experiment(path), member.experiment)
        others = [f"{name}: {change}" for name, change in changes.items() if name not in CHANGED_BY_RUNNING]
        if others:
            raise InputError(
                "\n  ".join([f"{path.parent} holds a run of other settings than the member of this sweep:", *others])
                + "\nmove it away, or name another --sweep-dir"
            )


def _is_done(job: Job, *, is_last: bool) -> bool:
    """Whether there is nothing to do for a member in a rung, of which `is_last` says that it ends with the run."""
    if (job.folder / DIVERGED).exists():
        return True
    return (job.folder / RESULT).exists() if is_last else job.until in read_scores(job.folder)


def _best(members: Sequence[Member], jobs: Sequence[Job], number: int) -> list[Member]:
    """The members with the highest top-1; of equal ones those that come first."""
    top1 = [read_scores(job.folder).get(job.until) for job in jobs]
    scores = [(-each, i) for i, each in enumerate(top1) if each is not None]
    return [members[i] for i in sorted(i for _, i in sorted(scores)[:number])]
