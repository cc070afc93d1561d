"""Metrics of a run: the terminal, `metrics.jsonl`, TensorBoard and, at the end, `curves.png`. Rank 0 only."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

import backbones.distributed as distributed
from backbones.run.files import Appender, atomic_write, to_json

METRICS = "metrics.jsonl"

SECONDS_BETWEEN_LINES = 10.0
"""Seconds between lines on training where there is no progress bar, as in output that is piped to a file."""

FORMATS = {
    "loss": "loss {:.4f}",
    "accuracy": "accuracy {:.1%}",
    "top1": "top-1 {:.2%}",
    "top5": "top-5 {:.2%}",
    "images_per_second": "{:.0f} images/s",
}
"""Metric -> how the terminal shows it; the others are in the files only."""


class MetricWriter:
    """Writes metrics to the terminal and to files; on other ranks than 0 it does nothing.

    Lines after `start_step` that an earlier process wrote are dropped, since these steps are done again.
    """

    def __init__(self, run_dir: Path, *, start_step: int, num_steps: int) -> None:
        self._is_main = distributed.is_main()
        if not self._is_main:
            return
        path = run_dir / METRICS
        kept = [line for line in read_metrics(path) if line["step"] <= start_step] if path.exists() else []
        atomic_write(path, "".join(to_json(line) + "\n" for line in kept))
        self._lines = Appender(path)
        (run_dir / "tensorboard").mkdir(exist_ok=True)
        self._events = Appender(run_dir / "tensorboard" / f"events.out.tfevents.{time.time_ns()}")
        self._records = RecordWriter(self._events)  # SummaryWriter has a thread, which fails on a full disk
        self._write_event(file_version="brain.Event:2")
        # TensorBoard then hides the events of the steps that are done again
        self._write_event(step=start_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._warned = False
        self._bar = tqdm(total=num_steps, initial=start_step, unit="step", disable=None)
        self._num_steps = num_steps
        self._start = (time.perf_counter(), start_step)
        self._last_line = 0.0

    def step_done(self) -> None:
        """Move the progress bar by one step."""
        if self._is_main:
            self._bar.update()

    def write(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one split (`train` or `test`) after `step` steps."""
        if not self._is_main:
            return
        self._lines.write(to_json({"step": step, "split": split, **metrics}).encode() + b"\n")
        values = [Summary.Value(tag=f"{split}/{name}", simple_value=value) for name, value in metrics.items()]
        self._write_event(step=step, summary=Summary(value=values))
        self._warn()
        self._print(split, step, metrics)

    def _write_event(self, **fields: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def _warn(self) -> None:
        failed = [(file.path, file.error) for file in (self._lines, self._events) if file.error is not None]
        if failed and not self._warned:
            path, error = failed[0]
            self.print(f"warning: cannot write {path}: {error.strerror}; metrics wait in memory until there is room")
        self._warned = bool(failed)

    def _print(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
        shown = "  ".join(text.format(metrics[name]) for name, text in FORMATS.items() if name in metrics)
        line, now = f"step {step}/{self._num_steps}  {split}: {shown}", time.perf_counter()
        if split == "test":
            self.print(line)
        elif not self._bar.disable:
            self._bar.set_postfix_str(shown)
        elif now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            start_time, start_step = self._start
            seconds_left = (now - start_time) / max(step - start_step, 1) * (self._num_steps - step)
            self.print(f"{line}  {tqdm.format_interval(seconds_left)} left")

    def print(self, line: str) -> None:
        """Print a line, above the progress bar if there is one."""
        if self._is_main:
            tqdm.write(line)
            sys.stdout.flush()

    def close(self) -> None:
        """Finish all files."""
        if self._is_main:
            self._bar.close()
            self._lines.close()
            self._events.close()
            self._warn()


def read_metrics(path: Path) -> list[dict]:
    """The lines of a `metrics.jsonl`; a last line that a killed process left unfinished is dropped."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def plot_curves(run_dir: Path) -> None:
    """Draw `curves.png` from `metrics.jsonl`: loss and accuracy over the steps, training and test."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    lines = read_metrics(run_dir / METRICS)
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for split, accuracy, style in (("train", "accuracy", {"alpha": 0.6, "lw": 1}), ("test", "top1", {"marker": "."})):
        of_split = [line for line in lines if line["split"] == split]
        steps = [line["step"] for line in of_split]
        for axes, name in ((loss_axes, "loss"), (accuracy_axes, accuracy)):
            values = [math.nan if line[name] is None else line[name] for line in of_split]
            axes.plot(steps, values, label=split, **style)
    loss_axes.set(xlabel="step", ylabel="loss (nats)", yscale="log")
    accuracy_axes.set(xlabel="step", ylabel="top-1 accuracy", ylim=(0, 1))
    for axes in (loss_axes, accuracy_axes):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.suptitle(run_dir.name)
    figure.savefig(run_dir / "curves.png", dpi=120)
