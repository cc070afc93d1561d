"""Measurements of costs; their results are in README.md and in docs/."""

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import NoReturn, TypeVar

import torch
import tyro

from backbones.commands.exit import run_command

T = TypeVar("T")


def run_script(main: Callable[..., None]) -> NoReturn:
    """Run the command line of the script whose function `main` is."""
    module = sys.modules["__main__"].__spec__
    run_command(lambda args: tyro.cli(main, args=args, prog=f"python -m {module.name if module else ''}"))


def status(name: str) -> int:
    """An entry of this process's memory in /proc/self/status, such as VmHWM, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


def interleaved(measurements: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """The results of each measurement; each is made once a round, so that other load on the machine slows all alike."""
    results = [{name: measure() for name, measure in measurements.items()} for _ in range(rounds)]
    return {name: [each[name] for each in results] for name in measurements}


def medians(measurements: Mapping[str, Callable[[], float]], rounds: int, *, warmup: int = 0) -> dict[str, float]:
    """The median of each measurement over interleaved rounds, after `warmup` rounds that do not count."""
    return {name: median(each[warmup:]) for name, each in interleaved(measurements, warmup + rounds).items()}


def median_seconds(calls: Mapping[str, Callable[[], object]], rounds: int, *, warmup: int = 0) -> dict[str, float]:
    """`medians` of the seconds of each call, until a GPU has finished it."""

    def seconds(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return medians({name: partial(seconds, call) for name, call in calls.items()}, rounds, warmup=warmup)
