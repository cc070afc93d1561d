"""Curves of groups over the steps, in the coordinates of a picture that the page draws as SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from backbones.run.report.groups import Group

MOST_POINTS = 200
"""Of a curve. Longer ones are averaged over stretches of equal length."""

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 24
"""Units of the picture: its size, and the margins around the axes."""

COLORS = (
    ("#2563c9", "#7fb0ff"),
    ("#d1531b", "#ff9d6b"),
    ("#1e8449", "#64d394"),
    ("#8e44ad", "#d3a2f2"),
    ("#b0800f", "#eec25c"),
    ("#0f8a94", "#55d3da"),
    ("#c2255c", "#ff8cb1"),
    ("#75522f", "#cda883"),
    ("#5a6675", "#aebaca"),
    ("#5c8011", "#b3da5e"),
)
"""Of groups, one after another: on a light background, and on a dark one."""


class Tick(NamedTuple):
    """A mark on an axis."""

    position: float
    text: str


class Curve(NamedTuple):
    """A line of the picture."""

    group: int
    is_mean: bool
    """Over the seeds of the group, or of its only one."""
    points: list[tuple[float, float]]
    """x from the left and y from the top."""


class Panel(NamedTuple):
    """One metric of all groups."""

    title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    curves: list[Curve]


def make_panel(title: str, groups: Sequence[Group], split: str, name: str, *, scale: float = 1.0) -> Panel | None:
    """The curves of one metric, times `scale`; None where no run has it."""
    lines = [
        (i, is_mean, [(step, scale * value) for step, value in thin(points)])
        for i, group in enumerate(groups)
        for is_mean, points in curves_of(group, split, name)
    ]
    values = [value for _, _, points in lines for _, value in points]
    if not values:
        return None
    is_log = is_logarithmic(name, values)
    last = max(step for _, _, points in lines for step, _ in points)
    x = PixelAxis(0, last, LEFT, WIDTH - RIGHT, is_tight=True)
    y = PixelAxis(min(values), max(values), HEIGHT - BOTTOM, TOP, is_log=is_log)
    curves = [Curve(i, is_mean, [(x(step), y(value)) for step, value in points]) for i, is_mean, points in lines]
    return Panel(title, x.ticks, y.ticks, curves)


def is_logarithmic(name: str, values: Sequence[float]) -> bool:
    """Whether the axis of a metric is: of a loss with positive values, the largest ten times the smallest."""
    return name == "loss" and min(values) > 0 and max(values) >= 10 * min(values)


def curves_of(group: Group, split: str, name: str) -> list[tuple[bool, Mapping[int, float]]]:
    """The curves that have points, as whether it is the mean, and step -> value: those of the seeds, then the mean."""
    seeds = [points for run in group.runs if (points := run.points(split, name))]
    if len(seeds) < 2:
        return [(True, points) for points in seeds]
    mean = group.mean_points(split, name)
    return [*((False, points) for points in seeds), *([(True, mean)] if mean else [])]


def thin(points: Mapping[int, float]) -> list[tuple[float, float]]:
    """Step and value of at most `MOST_POINTS` points: means over stretches, where there are more."""
    size = math.ceil(len(points) / MOST_POINTS) or 1
    pairs = list(points.items())
    stretches = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    return [
        (sum(steps) / len(steps), sum(values) / len(values))
        for steps, values in (zip(*s, strict=True) for s in stretches)
    ]


class PixelAxis:
    """value -> position on a line from `start` to `end`, with ticks at round values.

    Args:
        low: the lowest value.
        high: the highest one.
        start: position of about `low`.
        end: position of about `high`.
        is_log: whether equal ratios are equally far apart.
        is_tight: whether it ends at these values, or has a margin around them.
    """

    def __init__(
        self, low: float, high: float, start: float, end: float, *, is_log: bool = False, is_tight: bool = False
    ) -> None:
        from matplotlib.ticker import LogLocator, MaxNLocator  # late: half a second

        self._start, self._end, self._scale = start, end, math.log if is_log else float
        if is_log:
            ratio = high / low
            margin = ratio**0.05
            self._low, self._high = low / margin, high * margin
            ticks = LogLocator(subs=(1, 2, 5) if ratio < 30 else (1, 3) if ratio < 1000 else (1,)).tick_values(
                low, high
            )
        else:
            if low == high:
                low, high = low - max(abs(low) / 20, 0.5), high + max(abs(high) / 20, 0.5)
            ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
            self._low, self._high = (low, high) if is_tight else (min(low, ticks[0]), max(high, ticks[-1]))
        self.ticks = [Tick(self(value), f"{value:,.10g}") for value in ticks if self._low <= value <= self._high]

    def __call__(self, value: float) -> float:
        low, high, value = (self._scale(each) for each in (self._low, self._high, value))
        return round(self._start + (self._end - self._start) * (value - low) / (high - low), 1)
