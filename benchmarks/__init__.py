"""Measurements of costs; their results are in README.md and in docs/."""

from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")


def interleaved(measurements: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """The results of each measurement; each is made once a round, so that other load on the machine slows all alike."""
    results = [{name: measure() for name, measure in measurements.items()} for _ in range(rounds)]
    return {name: [each[name] for each in results] for name in measurements}
