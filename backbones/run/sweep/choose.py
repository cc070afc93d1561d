"""Which way of running a sweep is the fastest on this machine: a few steps of each are measured.

`python -m backbones.run.sweep.choose SWEEP MEMBER` is one of several processes that are measured together.
"""

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

import backbones.machine as machine
import backbones.tree as tree
from backbones.data import Dataset
from backbones.errors import InputError
from backbones.experiment import Experiment, Program, make_dataset
from backbones.run.sweep.jobs import share_of_machine
from backbones.run.sweep.members import How, Sweep, read_sweep
from backbones.torch_settings import torch_settings_kept
from backbones.vmapped_step import draws_numbers, make_vmapped_step

FEWEST_STEPS, FEWEST_SECONDS = 100, 20.0
"""Sweeps of runs of fewer steps, or that take less time in sequence, are run in sequence: nothing is measured."""

WARM_UP, TIMED, SECONDS = 1, 3, 0.5
"""Steps before the time is taken; steps, and seconds, for which it is taken at least."""

RUN_OVERHEAD, IMPORT_TIME = 1.0, 1.5
"""Seconds that a run takes beside its steps, for its files and pictures, and that a new process takes for imports."""

MOST_TO_MEASURE = 0.025
"""Share of the time of the sweep that it may take to start processes and measure their steps, and a vmapped step."""

CONTENTION = 1.1
"""How much longer a step takes beside other processes, if that is not measured: they share caches and memory."""

VMAP_MEMORY = 2.0
"""How much more memory a member takes in a vmapped step, whose gradient keeps all it computes to the end."""

Step = Callable[[], object]
"""Computes one more step of a training, and waits for it."""


def choose_how(sweep: Sweep, folder: Path, workers: int, *, may_vmap: bool = True) -> How:
    """Measure the ways that are possible, print what they would take, and return the fastest.

    What is measured is the step of the first member, as if all took as long.

    What would take too long to measure is estimated (processes) or left out (vmap). So is a vmapped step with dropout,
    which would draw other numbers.

    Args:
        sweep: what is to be run.
        folder: where its `sweep.json` is.
        workers: processes at a time.
        may_vmap: whether a vmapped step is one of the ways.
    """
    ends = sweep.rung_ends(sweep.members[0])
    if len(sweep.members) == 1 or ends[-1] < FEWEST_STEPS:
        return _in_sequence("one member" if len(sweep.members) == 1 else f"runs of {ends[-1]} steps")
    parts = [(size, end - before) for size, before, end in zip(sweep.rungs(), [0, *ends], ends, strict=False)]
    startup = time.process_time()  # what another process will take, which imports and reads the same
    with torch_settings_kept():
        experiment = sweep.members[0].experiment
        device = experiment.init_device()
        dataset = make_dataset(experiment.data, device)
        before = machine.resident_memory()
        step, run_overhead = make_step(experiment, dataset), RUN_OVERHEAD
        if experiment.mode(device) != "eager":  # each run compiles its step, but a vmapped one is eager
            started = time.perf_counter()
            step()
            run_overhead += time.perf_counter() - started
        step_seconds = seconds_of(step)
        sequence = sum(size * (run_overhead + step_seconds * part) for size, part in parts)
        if sequence < FEWEST_SECONDS:
            return _in_sequence(f"{sequence:.0f} s")
        seconds: dict[How, float] = {"sequence": sequence}
        most = MOST_TO_MEASURE * sequence
        to_start = startup + IMPORT_TIME
        may_start = workers > 1 and to_start < most
        before_vmap = to_start if may_start else IMPORT_TIME
        if may_vmap and before_vmap + (WARM_UP + TIMED) * len(sweep.members) * step_seconds < most:
            vmapped_seconds = seconds_of_vmapped(sweep, dataset, device, memory=machine.peak_memory(device) - before)
            _free_gpu_memory()
            if vmapped_seconds is not None:
                seconds["vmap"] = len(sweep.members) * RUN_OVERHEAD + vmapped_seconds * ends[-1]
        if workers > 1:
            overhead = to_start + run_overhead

            def seconds_in_processes(step_seconds: float) -> float:
                return sum(-(-size // workers) * (overhead + step_seconds * part) for size, part in parts)

            if device.type == "cpu":
                torch.set_num_threads(machine.share_of_cores(workers))
                step_seconds = seconds_of(step)
            del step
            _free_gpu_memory()
            is_worth_it = may_start and seconds_in_processes(step_seconds) < min(seconds.values())
            together = seconds_together(sweep, folder, workers) if is_worth_it else None
            seconds["processes"] = seconds_in_processes(together or CONTENTION * step_seconds)
    how = min(seconds, key=lambda how: seconds[how])
    shown = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    print(f"auto: {how}; by a few steps of each, training would take: {shown}", flush=True)
    return how


def _in_sequence(reason: str) -> How:
    """The way of a sweep that is too small to measure the others."""
    print(f"auto: sequence; other ways are not measured for {reason}", flush=True)
    return "sequence"


def _free_gpu_memory() -> None:
    """Give what this process does not use any more to others on the same GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def make_step(experiment: Experiment, dataset: Dataset) -> Step:
    """The steps of an experiment as they are in a run."""
    program = _program(experiment, dataset)
    return _repeated(program.train_step, program.state, program.batches)


def _program(experiment: Experiment, dataset: Dataset) -> Program:
    return dataclasses.replace(experiment, init_from=None).make(dataset)  # the weights do not matter


def _repeated(train_step: Callable[..., Any], state: Any, batches: Callable[[int], Any]) -> Step:
    done = 0

    def step() -> None:
        nonlocal state, done
        state, metrics = train_step(state, batches(done))
        done += 1
        metrics["loss"].sum().item()

    return step


def seconds_of(step: Step) -> float:
    """The median time of a step, after a warm-up."""
    for _ in range(WARM_UP):
        step()
    times: list[float] = []
    while len(times) < TIMED or sum(times) < SECONDS:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return median(times)


def seconds_of_vmapped(sweep: Sweep, dataset: Dataset, device: torch.device, *, memory: float) -> float | None:
    """The time of a vmapped step of all members; None if it is not possible, or would change what they compute.

    `memory` is what the step of one member takes, in bytes. On a GPU it does not count: there what does not fit raises.
    """
    experiments = [member.experiment for member in sweep.members]
    is_too_large = device.type == "cpu" and VMAP_MEMORY * memory * len(experiments) > machine.free_memory()
    if sweep.halving is not None or is_too_large:
        return None
    try:
        step = make_vmapped_step(experiments, dataset)
        if draws_numbers(experiments[0], dataset):
            return None
        programs = [_program(experiment, dataset) for experiment in experiments]
        states = tree.stack([program.state for program in programs])
        return seconds_of(_repeated(step, states, lambda i: tree.stack([program.batches(i) for program in programs])))
    except (InputError, RuntimeError):  # out of memory, or an operation that does not vmap
        return None


def seconds_together(sweep: Sweep, folder: Path, workers: int) -> float | None:
    """The mean time of a step of the first member in each of several processes; None if one of them fails."""
    with ExitStack() as stack:
        processes: list[Any] = []
        for slot in range(min(workers, len(sweep.members))):
            process = subprocess.Popen(
                [sys.executable, "-m", "backbones.run.sweep.choose", str(folder), sweep.members[0].name],
                env=share_of_machine(slot, workers),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            processes.append(process)
        ready = [process.stdout.readline() for process in processes]
        if not all(ready):
            return None
        try:
            for process in processes:
                process.stdin.write("\n")
                process.stdin.flush()
        except BrokenPipeError:
            return None
        seconds = [process.stdout.readline() for process in processes]
        return fmean(map(float, seconds)) if all(seconds) else None


def main(folder: str, name: str) -> None:
    """Print an empty line when a member can be trained, and the time of its step when one was read."""
    sweep = read_sweep(Path(folder))[0]
    experiment = next(member.experiment for member in sweep.members if member.name == name)
    with redirect_stdout(sys.stderr):  # what data sets and models print
        step = make_step(experiment, make_dataset(experiment.data, experiment.init_device()))
        step()
    print(flush=True)
    sys.stdin.readline()
    with redirect_stdout(sys.stderr):
        seconds = seconds_of(step)
    print(seconds, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
