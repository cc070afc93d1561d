"""The runs of the members of a sweep, one after another in this process, or in several processes.

Each run is that of `train.py`, in its own folder; it goes on where it was, and is saved when it is asked to stop.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import backbones.machine as machine
from backbones.errors import InputError, first_line, is_out_of_memory
from backbones.experiment import Experiment
from backbones.run.files import atomic_write, read_json, write_json
from backbones.run.loop import Diverged
from backbones.run.preemption import Preempted, handle_signals
from backbones.run.run import run
from backbones.run.run_dir import RESULT

DIVERGED, LOG, SCORES = "diverged.txt", "log.txt", "scores.json"
"""Files of a member: why it cannot go on; what it printed, where several run at once; its top-1 after each part of its
run but the last."""

STOPPED = "the sweep is stopped, and its members are saved; the same command continues it"

MOST_WORKERS = 8
"""Processes at a time, if nothing else is asked for: each takes memory of its own."""


class Job(NamedTuple):
    """The run of a member, or a part of it."""

    folder: Path
    experiment: Experiment
    until: int
    """The last step of this part."""

    @property
    def name(self) -> str:
        """That of the member."""
        return self.folder.name


def run_job(job: Job, preempted: Callable[[], bool] | None = None) -> None:
    """Run a member in this process; one that diverges is left as it is, and the reason is written into its folder.

    `preempted` says whether to save and stop; None handles signals.

    Raises:
        InputError, Preempted: as `run`.
    """
    try:
        result = run(job.experiment, run_dir=job.folder, resume="auto", until=job.until, preempted=preempted)
    except Diverged as error:
        record_divergence(job, error)
    else:
        if not (job.folder / RESULT).exists():  # it has more parts to run
            scores = {**read_scores(job.folder), job.until: result["top1"]}
            write_json(job.folder / SCORES, {str(step): top1 for step, top1 in scores.items()})


def read_scores(folder: Path) -> dict[int, float]:
    """Step -> top-1 of the held-out samples after it, for each part of a member's run that is done."""
    if not (folder / SCORES).exists():
        return {}
    return {int(step): top1 for step, top1 in read_json(folder / SCORES).items()}


def record_divergence(job: Job, error: Diverged) -> None:
    """Print why a member cannot go on, and write it into its folder."""
    print(error, flush=True)
    atomic_write(job.folder / DIVERGED, f"{error}\n")


def run_in_sequence(jobs: Sequence[Job]) -> dict[str, str]:
    """Run members one after the other, each with all threads.

    Returns:
        Name -> reason, of each member that failed; the others go on.

    Raises:
        Preempted: a signal asked to stop, and the member is saved.
    """
    failures: dict[str, str] = {}
    with handle_signals() as preempted:
        for i, job in enumerate(jobs, start=1):
            print(f"\n{job.name} ({i} of {len(jobs)})", flush=True)
            try:
                with suppress(Preempted):
                    run_job(job, preempted)
            except InputError as error:
                failures[job.name] = str(error)
            except Exception as error:
                if not (isinstance(error, OSError) or is_out_of_memory(error)):
                    traceback.print_exc()
                failures[job.name] = first_line(error)
            if preempted():
                raise Preempted(STOPPED)
    return failures


def default_workers(num_members: int, experiment: Experiment) -> int:
    """How many processes run members at a time: one for each GPU, or for each core up to `MOST_WORKERS`."""
    gpus = 0 if experiment.device == "cpu" else torch.cuda.device_count()
    return min(num_members, gpus or min(machine.num_cores(), MOST_WORKERS))


def share_of_machine(slot: int, workers: int) -> dict[str, str]:
    """The environment of one of several processes: its share of the cores, and one of the GPUs."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(machine.share_of_cores(workers))}
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus.split(",")[slot % len(gpus.split(","))]
    return environment


def start_process(job: Job, slot: int, workers: int) -> subprocess.Popen[bytes]:
    """Start a member in a process of its own, which prints into `log.txt` and ends when this one does.

    Signals of the terminal do not reach it.
    """
    command = [sys.executable, "-m", "backbones", "sweep", "--resume", str(job.folder.parent), "--only", job.name]
    job.folder.mkdir(exist_ok=True)
    with (job.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [*command, "--until", str(job.until)],
            env=share_of_machine(slot, workers),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, however it did: its end of our stdin closes."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_in_processes(jobs: Sequence[Job], workers: int) -> dict[str, str]:
    """Run members in `workers` processes at a time.

    Returns:
        Name -> reason, of each member whose process failed; the others go on.

    Raises:
        Preempted: a signal asked to stop, and the members are saved.
    """
    waiting, failures = list(jobs), dict[str, str]()
    running: dict[int, tuple[subprocess.Popen[bytes], Job]] = {}
    stopping = False
    with handle_signals() as preempted, closing(tqdm(total=len(jobs), unit="member", disable=None)) as bar:
        try:
            while running or waiting:
                if preempted() and not stopping:
                    stopping, waiting = True, []
                    for process, _ in running.values():
                        process.terminate()
                for slot in range(workers):
                    if slot in running and running[slot][0].poll() is not None:
                        process, job = running.pop(slot)
                        process.communicate()
                        bar.update()
                        if process.returncode != 0:
                            failures[job.name] = _reason(job, process.returncode)
                    if slot not in running and waiting:
                        job = waiting.pop(0)
                        try:
                            running[slot] = start_process(job, slot, workers), job
                        except OSError as error:  # its folder cannot be written
                            failures[job.name] = str(error)
                            bar.update()
                time.sleep(0.05)
        finally:
            for process, _ in running.values():
                process.kill()
                process.communicate()
    if stopping:
        raise Preempted(STOPPED)
    return failures


def _reason(job: Job, code: int) -> str:
    """Why the process of a member has failed: the last line that it printed."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = (job.folder / LOG).read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")
