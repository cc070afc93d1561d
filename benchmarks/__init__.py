"""Measurements of costs; their results are in README.md and in docs/."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def status(name: str) -> int:
    """An entry of this process's memory in /proc/self/status, such as VmHWM, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


def interleaved(measurements: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """The results of each measurement; each is made once a round, so that other load on the machine slows all alike."""
    results = [{name: measure() for name, measure in measurements.items()} for _ in range(rounds)]
    return {name: [each[name] for each in results] for name in measurements}
