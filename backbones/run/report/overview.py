"""The curves and the table of a report in one PNG."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from backbones.run.report.curves import COLORS, curves_of, is_logarithmic, thin
from backbones.run.report.groups import Group
from backbones.run.report.text import count, duration, memory, percent, rate

CURVES, LINE, MARGIN = 3.4, 0.28, 0.5
"""Inches: height of the curves, of a line of the table, and of the space around them."""

COLUMNS = (
    ("parameters", 0.505),
    ("MACs", 0.585),
    ("top-1, %", 0.68),
    ("seeds", 0.73),
    ("images/s", 0.8),
    ("time", 0.89),
    ("peak memory", 0.99),
)
"""Heading and right end of the columns of the table, in shares of the width."""


def draw_overview(groups: Sequence[Group], path: Path, *, title: str) -> None:
    """Draw held-out top-1 and training loss over the steps, and below them a line on each group."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state
    from matplotlib.lines import Line2D

    table = LINE * (len(groups) + 1)
    height = CURVES + table + 3 * MARGIN
    figure = Figure(figsize=(10, height))
    figure.text(0.05, 1 - 0.6 * MARGIN / height, title, fontsize=14, weight="bold", va="center", parse_math=False)
    top, bottom = 1 - 1.6 * MARGIN / height, (table + 1.4 * MARGIN) / height
    axes = figure.subplots(
        1, 2, gridspec_kw={"left": 0.05, "right": 0.99, "top": top, "bottom": bottom, "wspace": 0.12}
    )
    metrics = (("test", "top1", "held-out top-1, %", 100), ("train", "loss", "training loss", 1))
    for each, (split, name, label, scale) in zip(axes, metrics, strict=True):
        lines = [(i, *curve) for i, group in enumerate(groups) for curve in curves_of(group, split, name)]
        ends_only = all(len(points) == 1 for *_, points in lines)
        for i, is_mean, points in lines:
            steps, values = zip(*thin(points), strict=True)
            if not ends_only:
                style = {"lw": 1.8, "zorder": 3} if is_mean else {"lw": 0.7, "alpha": 0.5}
                each.plot(
                    steps, [scale * value for value in values], marker="." * (len(points) == 1), **_line(i), **style
                )
            elif is_mean:
                each.barh(i, scale * values[0], **_line(i))
        if ends_only:
            each.invert_yaxis()
            each.set_yticks([])
        elif is_logarithmic(name, [value for *_, points in lines for value in points.values()]):
            each.set_yscale("log")
        each.set_title(label, fontsize=10, loc="left")
        each.set_xlabel("" if ends_only else "step")
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    for heading, right in COLUMNS:
        figure.text(right, (table + 0.2 * MARGIN) / height, heading, ha="right", va="center", fontsize=9, color="0.4")
    for i, group in enumerate(groups):
        y = (table + 0.2 * MARGIN - LINE * (i + 1)) / height
        figure.add_artist(Line2D((0.05, 0.067), (y, y), lw=1.8, **_line(i)))
        label = group.label if len(group.label) <= 48 else f"{group.label[:45]}..."
        figure.text(0.075, y, label, va="center", fontsize=10, parse_math=False)
        for (_, right), text in zip(COLUMNS, _cells(group), strict=True):
            figure.text(right, y, text, ha="right", va="center", fontsize=10)
    figure.savefig(path, dpi=150)


def _cells(group: Group) -> list[str]:
    top1 = group.statistic("top1")
    std = "" if top1 is None or top1.std is None else f" ± {percent(top1.std)}"
    numbers: list[tuple[float | None, Callable[[float], str]]] = [
        (group.largest("num_params"), count),
        (group.largest("macs"), count),
        (top1 and top1.mean, lambda share: percent(share) + std),
        (len(group.counted), count),
        (group.mean("images_per_second"), rate),
        (group.mean("seconds"), duration),
        (group.largest("peak_memory"), memory),
    ]
    return ["-" if value is None else write(value) for value, write in numbers]


def _line(i: int) -> dict[str, Any]:
    """Colour and dashes of group i."""
    return {"color": COLORS[i % len(COLORS)][0], "ls": ("-", "--", ":")[i // len(COLORS) % 3]}
