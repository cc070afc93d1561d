"""The lines of `metrics.jsonl`, and their curves."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import backbones.distributed as distributed

METRICS = "metrics.jsonl"

TIMES = ("images_per_second", "seconds")
"""Metrics that another run of the same experiment does not repeat."""


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of the `metrics.jsonl` of a run; none where there is no such file.

    A last line that a killed process left unfinished is dropped, and others that are damaged with a warning.
    """
    path = run_dir / METRICS
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    complete = [line for line in lines if line.endswith(b"\n")]
    metrics = [values for line in complete if (values := _read_line(line)) is not None]
    if len(metrics) < len(complete):
        distributed.warn0(f"{path}: {len(complete) - len(metrics)} damaged lines are left out")
    return metrics


def _read_line(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
        numbers = {name: value for name, value in values.items() if name != "split"}
    except (ValueError, AttributeError):
        return None
    good = isinstance(values.get("step"), int) and values.get("split") in ("train", "test")
    return values if good and all(isinstance(value, int | float | None) for value in numbers.values()) else None


def plot_curves(run_dir: Path) -> None:
    """Draw `curves.png` from `metrics.jsonl`: loss and accuracy over the steps, training and test."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    lines = read_metrics(run_dir)
    figure = Figure(figsize=(10, 4))
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.12, top=0.9)  # a layout engine takes as long as drawing
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for split, accuracy, style in (("train", "accuracy", {"alpha": 0.6, "lw": 1}), ("test", "top1", {"marker": "."})):
        of_split = [line for line in lines if line["split"] == split]
        steps = [line["step"] for line in of_split]
        for axes, name in ((loss_axes, "loss"), (accuracy_axes, accuracy)):
            values = [math.nan if line.get(name) is None else line[name] for line in of_split]
            axes.plot(steps, values, label=split, **style)
    loss_axes.set(xlabel="step", ylabel="loss (nats)", yscale="log")
    accuracy_axes.set(xlabel="step", ylabel="top-1 accuracy", ylim=(0, 1))
    for axes in (loss_axes, accuracy_axes):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.suptitle(run_dir.name, parse_math=False)
    figure.savefig(run_dir / "curves.png", dpi=120)


def tagged(line: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a line of `metrics.jsonl` by names such as `train/loss`; null is nan."""
    metrics = {name: value for name, value in line.items() if name not in ("step", "split")}
    return {f"{line['split']}/{name}": math.nan if value is None else value for name, value in metrics.items()}
