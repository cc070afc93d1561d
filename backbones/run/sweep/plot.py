"""A picture of a sweep: top-1 against the values of its axes."""

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from backbones.run.files import atomic_path
from backbones.run.sweep.members import Sweep
from backbones.run.sweep.table import Row, mean_of

MOST_TICKS = 8
"""Values of an axis that are written below it, if there are no more."""


def plot_sweep(sweep: Sweep, rows: Sequence[Row], path: Path) -> None:
    """Draw the members: over one axis, as a heat map over a grid of two, or in a panel for each axis.

    Seeds are dots, and their means a line, unless the seed is the only axis.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    fields = [field for field in sweep.axes if field != "seed"] or ["seed"]
    rows = sorted(rows, key=lambda row: sweep.members.index(row.member))
    figure = Figure(figsize=(max(5.0, 4.0 * len(fields)), 4), layout="constrained")
    figure.suptitle(sweep.experiment.name, parse_math=False)
    cells = {tuple(_label(row, field) for field in fields) for row in rows}
    if len(fields) == 2 and len(cells) == math.prod(len(_labels(rows, field)) for field in fields):
        _draw_grid(figure, rows, fields)
    else:
        panels = figure.subplots(1, len(fields), sharey=True, squeeze=False)[0]
        for panel, field in zip(panels, fields, strict=True):
            _draw_axis(panel, rows, field)
        panels[0].set_ylabel("top-1 accuracy")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _label(row: Row, field: str) -> str:
    return str(row.member.values[field])


def _labels(rows: Sequence[Row], field: str) -> list[str]:
    """The values of a field as text, numbers in ascending order, others in that of the sweep."""
    values = {_label(row, field): row.member.values[field] for row in rows}
    if all(_is_number(value) for value in values.values()):
        return sorted(values, key=lambda label: values[label])
    return list(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mean_top1(rows: Sequence[Row]) -> tuple[float, str]:
    """The mean of those that got furthest, since halving stops others at earlier steps; and where they were stopped."""
    furthest = [row for row in rows if row.status == "finished"]
    if furthest or not (steps := max((row.steps for row in rows if row.status == "stopped"), default=0)):
        return mean_of([row.top1 for row in furthest]), ""
    return mean_of([row.top1 for row in rows if row.status == "stopped" and row.steps == steps]), f"\nat step {steps}"


def _draw_axis(axes: Any, rows: Sequence[Row], field: str) -> None:
    """Top-1 against the values of one field: a dot for each member, and a line for the means."""
    labels = _labels(rows, field)
    values = [row.member.values[field] for row in rows]
    numeric = all(_is_number(value) for value in values)
    place = {label: float(label) if numeric else i for i, label in enumerate(labels)}
    axes.plot([place[_label(row, field)] for row in rows], [row.top1 for row in rows], "o", alpha=0.5)
    means = [_mean_top1([row for row in rows if _label(row, field) == label])[0] for label in labels]
    if len(labels) < len(rows):
        axes.plot([place[label] for label in labels], means, "-" if numeric else "_", markersize=20)
    if numeric and min(values) > 0 and max(values) >= 10 * min(values):
        axes.set_xscale("log")
    if not numeric or len(labels) <= MOST_TICKS:
        axes.set_xticks([place[label] for label in labels], labels, rotation=30, parse_math=False)
        axes.set_xticks([], minor=True)
    axes.set_xlabel(field)
    axes.grid(alpha=0.3)


def _draw_grid(figure: Any, rows: Sequence[Row], fields: Sequence[str]) -> None:
    """The mean of top-1 over the seeds in each cell of a grid."""
    down, across = (_labels(rows, field) for field in fields)
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((_label(row, fields[0]), _label(row, fields[1])), []).append(row)
    means = [[_mean_top1(cells[y, x])[0] for x in across] for y in down]
    axes = figure.subplots()
    figure.colorbar(axes.imshow(means, cmap="viridis", aspect="auto"), label="top-1 accuracy")
    axes.set(xlabel=fields[1], ylabel=fields[0])
    axes.set_xticks(range(len(across)), across, rotation=30, parse_math=False)
    axes.set_yticks(range(len(down)), down, parse_math=False)
    known = [value for line in means for value in line if not math.isnan(value)]
    for (i, y), (j, x) in product(enumerate(down), enumerate(across)):
        value, stopped = _mean_top1(cells[y, x])
        dark = not known or value < (min(known) + max(known)) / 2
        text = "diverged" if math.isnan(value) else f"{value:.2%}{stopped}"
        axes.text(j, i, text, ha="center", va="center", color="white" if dark else "black", fontsize=8)
