"""Where the time and the memory of some steps went: a trace of torch.profiler, and two tables of it."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.nn.modules import module as nn_module
from torch.profiler import profile, record_function

import backbones.distributed as distributed
from backbones.errors import InputError
from backbones.experiment import Program
from backbones.train_step import TrainState
from backbones.types import Batch, Metrics

PHASES = ("augment", "forward", "backward", "update")
"""What a train step marks; the rest of it, and what is between two steps, have names of their own."""

WAITING = "waiting for data"
"""The phase between two steps in which the next batch is not there yet."""

ROOT = "model"
"""What the whole module is called; the others have their dotted names after it."""

Measure = Callable[[FunctionEvent], float]
"""A number of an event of the profiler."""

DEPTH = 2
"""How far down the tree of modules the second table goes."""


def parse_steps(text: str) -> range:
    """The steps `A:B`, from A to B - 1, counted from 1.

    Raises:
        InputError: it is something else.
    """
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal() and 1 <= int(first) < int(end)):
        raise InputError(f"--profile is {text!r}; it must be A:B, for the steps A to B - 1 with 1 <= A < B: 5:8")
    return range(int(first), int(end))


@contextmanager
def profiled(program: Program, steps: range, *, left: range, folder: Path) -> Iterator[Program]:
    """The program, which on rank 0 profiles those `steps`, writes the trace into `folder` and prints the tables.

    Args:
        program: eager, for the phases and the modules; those of a compiled one are not seen.
        steps: from 1; what happens between them, such as reading data and logging, is profiled too. Those that are
            passed over are not in the means.
        left: the steps that will be done.
        folder: gets a file for chrome://tracing or ui.perfetto.dev.

    Raises:
        InputError: they are not all of the steps that are left.
    """
    name = f"{steps.start}:{steps.stop}"
    if not left.start <= steps.start < steps.stop <= left.stop:
        raise InputError(
            f"--profile {name} is outside of what is left of the run: steps {left.start} to {left.stop - 1}"
        )
    if not distributed.is_main():
        yield program
        return
    path = folder / f"profile-{steps.start}-{steps.stop}.json"
    profiler: profile | None = None
    step = num_done = 0
    since = 0.0

    def batches(index: int) -> Batch:
        nonlocal step, profiler, since
        step = index + 1  # the training asks for the batch of a step just before it
        if profiler is None and num_done == 0 and step in steps:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints what it is doing
            stack.enter_context(_named_modules())
            # else the backward pass of a GPU is in a thread of its own, which is no part of the step
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            profiler = stack.enter_context(profile(profile_memory=True))
            since = time.perf_counter()
        elif step not in steps:
            finish()
        with record_function(WAITING):
            return program.batches(index)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        nonlocal num_done
        with record_function("train_step"):
            state, metrics = program.train_step(state, batch)
        if profiler is not None:
            num_done += 1
        if step == steps.stop - 1:
            finish()
        return state, metrics

    def finish() -> None:
        nonlocal profiler
        if profiler is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - since
        done, profiler = profiler, None
        stack.close()
        done.export_chrome_trace(str(path))
        print(tables(list(done.events() or ()), seconds=seconds, num_steps=num_done))
        print(f"the trace of steps {name} is in {path}; open it in ui.perfetto.dev", flush=True)

    with ExitStack() as stack:
        yield program._replace(batches=batches, train_step=train_step)
        finish()
    if num_done == 0:
        print(f"none of the steps {name} was computed, and there is no trace of them", flush=True)


@contextmanager
def _named_modules() -> Iterator[None]:
    """Within the block, the forward pass of each module is marked with its dotted name, `model.stages.0`."""
    names: list[tuple[nn.Module, str]] = []
    marks: list[record_function] = []

    def enter(module: nn.Module, args: Any) -> None:
        parent, path = names[-1] if names else (None, "")
        found = next((name for name, each in parent.named_modules() if each is module), "?") if parent else ROOT
        names.append((module, f"{path}.{found}" if path else found))
        marks.append(record_function(names[-1][1]))
        marks[-1].__enter__()

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        names.pop()
        marks.pop().__exit__(None, None, None)

    handles = [
        nn_module.register_module_forward_pre_hook(enter),
        nn_module.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tables(events: list[FunctionEvent], *, seconds: float, num_steps: int) -> str:
    """The table of phases and that of modules, of `num_steps` steps that took `seconds`.

    A GPU computes while Python goes on: both tables have the time of the one that takes longer for a step.
    """
    events = [event for event in events if event.device_type == DeviceType.CPU]  # a GPU repeats the marks
    steps = [event for event in events if event.name == "train_step"]
    on_gpu, on_cpu = (_mean(steps, time_of, num_steps) for time_of in (_gpu_time, _cpu_time))
    time_of = _gpu_time if on_gpu > on_cpu else _cpu_time
    text = "\n".join(
        table(events, time_of, seconds=seconds, num_steps=num_steps) for table in (phase_table, module_table)
    )
    if not any(map(_is_module, events)):
        text += "\nthe phases and modules of a compiled step are not seen; add --compile off\n"
    if on_gpu:
        shown, gpu, python = "the GPU" if on_gpu > on_cpu else "Python", on_gpu / 1e3, on_cpu / 1e3
        text += f"\ntimes are those of {shown}: of a step, {gpu:.1f} ms on the GPU and {python:.1f} ms in Python\n"
    return text


def phase_table(events: list[FunctionEvent], time_of: Measure, *, seconds: float, num_steps: int) -> str:
    """Time of each phase, and the memory that is still allocated when it is over, as means over the steps."""
    marked = {name: [each for each in events if each.name == name] for name in ("train_step", *PHASES, WAITING)}
    for name in ("forward", "backward"):  # those of a second gradient, as SAM takes it, are a part of the update
        marked[name] = [each for each in marked[name] if not _is_within(each, marked["update"])]
    total = 1e6 * seconds / num_steps
    times = {name: _mean(found, time_of, num_steps) for name, found in marked.items()}
    in_step, waiting = times.pop("train_step"), times.pop(WAITING)
    times["rest of the step"] = in_step - sum(times.values())
    times |= {WAITING: waiting, "between steps": total - in_step - waiting}
    lines = ["| phase | ms per step | share | memory kept, MB |", "|---|--:|--:|--:|"]
    for name, microseconds in times.items():
        kept = f"{_mean(marked[name], _memory, num_steps) / 1e6:.0f}" if name in marked else ""
        lines.append(f"| {name} | {microseconds / 1e3:.1f} | {microseconds / total:.0%} | {kept} |")
    return "\n".join(lines) + "\n"


def _is_within(event: FunctionEvent, others: list[FunctionEvent]) -> bool:
    spans = ((other.thread, other.time_range) for other in others)
    start, end = event.time_range.start, event.time_range.end
    return any(event.thread == thread and span.start <= start and end <= span.end for thread, span in spans)


def module_table(events: list[FunctionEvent], time_of: Measure, *, seconds: float, num_steps: int) -> str:
    """Time of each module, and the memory that its forward pass leaves allocated, as means over the steps.

    A module's backward pass is what autograd computes for the operators of its forward pass. There are no rows for a
    compiled step.
    """
    total = 1e6 * seconds / num_steps
    backward = _backward_times(events, time_of)
    rows: dict[str, list[FunctionEvent]] = {}
    steps = [event for event in events if event.name == "train_step"]
    for event in filter(_is_module, events):
        if event.name.count(".") <= DEPTH and _is_within(event, steps):  # not in an evaluation between two steps
            rows.setdefault(event.name, []).append(event)
    lines = ["| module | forward, ms | backward, ms | share | memory kept, MB |", "|---|--:|--:|--:|--:|"]
    for name, found in rows.items():
        forward = _mean(found, time_of, num_steps)
        of_backward = sum(value for owner, value in backward.items() if f"{owner}.".startswith(f"{name}.")) / num_steps
        share, memory = (forward + of_backward) / total, _mean(found, _memory, num_steps) / 1e6
        lines.append(f"| {name} | {forward / 1e3:.1f} | {of_backward / 1e3:.1f} | {share:.0%} | {memory:.0f} |")
    return "\n".join(lines) + "\n"


def _is_module(event: FunctionEvent) -> bool:
    return event.name.partition(".")[0] == ROOT


def _backward_times(events: list[FunctionEvent], time_of: Measure) -> dict[str, float]:
    """Name of a module -> microseconds of the backward pass of its own operators."""
    owners: dict[int, str] = {}  # by the number that autograd gives to an operator and to its backward
    for event in events:
        owner = event.cpu_parent
        while owner is not None and not _is_module(owner):
            owner = owner.cpu_parent
        if owner is not None and event.sequence_nr >= 0:
            owners[event.sequence_nr] = owner.name
    times: dict[str, float] = {}
    for event in events:
        if event.name.startswith("autograd::engine::evaluate_function") and event.sequence_nr in owners:
            owner_name = owners[event.sequence_nr]
            times[owner_name] = times.get(owner_name, 0.0) + time_of(event)
    return times


def _mean(events: list[FunctionEvent], measure: Measure, num_steps: int) -> float:
    return sum(map(measure, events)) / num_steps


def _cpu_time(event: FunctionEvent) -> float:
    """Microseconds from its begin to its end."""
    return event.cpu_time_total


def _gpu_time(event: FunctionEvent) -> float:
    """Microseconds of what it had a GPU compute."""
    return event.device_time_total


def _memory(event: FunctionEvent) -> float:
    """Bytes that were allocated and not freed."""
    return event.cpu_memory_usage + event.device_memory_usage
