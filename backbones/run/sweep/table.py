"""Results of the members of a sweep: one row each in table.csv, and seeds taken together in table.md."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple, get_args

from backbones.run.files import atomic_write, read_json
from backbones.run.metric_lines import read_metrics
from backbones.run.run_dir import RESULT
from backbones.run.sweep.jobs import DIVERGED
from backbones.run.sweep.members import Member, Sweep

STATUS = Literal["finished", "stopped", "diverged", "failed"]
"""Stopped: by successive halving. Failed: its process ended with an error."""

ORDER: tuple[STATUS, ...] = get_args(STATUS)


class Row(NamedTuple):
    """The result of a member: its held-out metrics after its last step, NaN if it diverged or failed."""

    member: Member
    status: STATUS
    steps: int
    top1: float = math.nan
    top5: float = math.nan
    loss: float = math.nan


def read_rows(sweep: Sweep, folder: Path, failed: Mapping[str, str]) -> list[Row]:
    """A row for each member: those with more steps before those that halving stopped, and by top-1, the best first.

    `failed` has the names of the members whose processes failed.
    """
    rows = [_read_row(member, folder / member.name, failed) for member in sweep.members]
    return sorted(
        rows,
        key=lambda row: (
            ORDER.index(row.status),
            -row.steps if row.status == "stopped" else 0,
            -row.top1 if row.status in ("finished", "stopped") else 0.0,
        ),
    )


def _read_row(member: Member, folder: Path, failed: Mapping[str, str]) -> Row:
    if (folder / RESULT).exists():
        result = read_json(folder / RESULT)
        return _row(member, "finished", result, result["steps"])
    if (folder / DIVERGED).exists():
        step = re.search(r"at step (\d+)", (folder / DIVERGED).read_text())
        return Row(member, "diverged", int(step[1]) if step else 0)
    evaluated = [line for line in read_metrics(folder) if line["split"] == "test"]
    if member.name in failed or not evaluated:
        return Row(member, "failed", evaluated[-1]["step"] if evaluated else 0)
    return _row(member, "stopped", evaluated[-1], evaluated[-1]["step"])


def _row(member: Member, status: STATUS, values: Mapping[str, Any], steps: int) -> Row:
    metrics = {name: math.nan if values[name] is None else values[name] for name in ("top1", "top5", "loss")}
    return Row(member, status, steps, **metrics)


def to_csv(sweep: Sweep, rows: Sequence[Row]) -> str:
    """A line for each member, with all digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*sweep.axes, "top1", "top5", "loss", "steps", "status", "run"])
    for row in rows:
        values = [_text(row.member.values[field]) for field in sweep.axes]
        writer.writerow([*values, row.top1, row.top5, row.loss, row.steps, row.status, row.member.name])
    return text.getvalue()


def to_markdown(sweep: Sweep, rows: Sequence[Row]) -> str:
    """A table, sorted by top-1; where the seed varies, a line for all seeds, with mean and standard deviation.

    Halving, which stops some of the seeds, has a line for each member.
    """
    by_seed = "seed" in sweep.axes and sweep.halving is None
    groups = group_by_seed(rows) if by_seed else [[row] for row in rows]
    fields = [field for field in sweep.axes if field != "seed" or not by_seed]
    lines = [[*fields, "top-1, %", "loss", "steps", "seeds" if by_seed else "run"]]
    for group in groups:
        first = group[0]
        counts = {status: sum(row.status == status for row in group) for status in ORDER}
        others = [f"{count} {status}" for status, count in counts.items() if count and status != "finished"]
        seeds = f"{counts['finished']} of {len(group)}: {', '.join(others)}" if others else str(len(group))
        lines.append(
            [
                *(_text(first.member.values[field]) for field in fields),
                _mean([100 * row.top1 for row in group], "{:.2f}") or first.status,
                _mean([row.loss for row in group], "{:.4f}"),
                str(first.steps),
                seeds if by_seed else first.member.name,
            ]
        )
    return _align(lines, num_left=len(fields))


def group_by_seed(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows that differ in nothing but the seed, the highest mean of top-1 first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        key = repr({field: value for field, value in row.member.values.items() if field != "seed"})
        groups.setdefault(key, []).append(row)
    return sorted(groups.values(), key=lambda group: -mean_of([row.top1 for row in group], default=-1.0))


def mean_of(values: Sequence[float], default: float = math.nan) -> float:
    """The mean of those values that are not NaN; `default` if there are none."""
    finite = [value for value in values if not math.isnan(value)]
    return fmean(finite) if finite else default


def _mean(values: Sequence[float], form: str) -> str:
    """Mean and standard deviation (n - 1) of those values that are not NaN."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return "".join(form.format(value) for value in known)
    return f"{form.format(fmean(known))} ± {form.format(stdev(known))}"


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _align(lines: Sequence[Sequence[str]], *, num_left: int) -> str:
    """A Markdown table whose first columns are aligned on the left."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = ["-" * width if i < num_left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    padded = [
        [cell.ljust(widths[i]) if i < num_left else cell.rjust(widths[i]) for i, cell in enumerate(line)]
        for line in (lines[0], rule, *lines[1:])
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in padded)


def write_tables(sweep: Sweep, rows: Sequence[Row], folder: Path) -> str:
    """Write table.csv and table.md, and return the text of the latter."""
    text = to_markdown(sweep, rows)
    atomic_write(folder / "table.csv", to_csv(sweep, rows))
    atomic_write(folder / "table.md", text)
    return text
