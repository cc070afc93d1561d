"""Metrics of a run: the terminal, `metrics.jsonl`, TensorBoard, trackers and, at the end, `curves.png`. Rank 0 only."""

import json
import math
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

import backbones.distributed as distributed
from backbones.run.files import Appender, atomic_write, json_text
from backbones.run.trackers import Trackers

METRICS = "metrics.jsonl"

TIMES = ("images_per_second", "seconds")
"""Metrics that another run of the same experiment does not repeat."""

SECONDS_BETWEEN_LINES = 10.0
"""Seconds between lines on training where there is no progress bar, as in output that is piped to a file."""

LINES_FOR_SPEED = 10
"""The time left is estimated from the steps since so many lines before: not from compiling, which the first one has."""

FORMATS = {
    "loss": "loss {:.4f}",
    "accuracy": "accuracy {:.1%}",
    "top1": "top-1 {:.2%}",
    "top5": "top-5 {:.2%}",
    "images_per_second": "{:.0f} images/s",
}
"""Metric -> how the terminal shows it; the others are in the files only."""


class MetricWriter:
    """Writes metrics to the terminal, to files and to trackers; on other ranks than 0 it does nothing.

    Lines after `start_step` that an earlier process wrote are dropped, since these steps are done again. It warns if
    the last one of the others is `log_every` steps before it, or more.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        start_step: int,
        num_steps: int,
        log_every: float = math.inf,
        trackers: Trackers = Trackers(),
    ) -> None:
        self._is_main = distributed.is_main()
        if not self._is_main:
            return
        self._trackers = trackers
        (run_dir / "tensorboard").mkdir(exist_ok=True)
        self._events = Appender(run_dir / "tensorboard" / f"events.out.tfevents.{time.time_ns()}")
        self._records = RecordWriter(self._events)  # SummaryWriter has a thread, which fails on a full disk
        self._write_event(file_version="brain.Event:2")
        self._path = run_dir / METRICS
        kept = self._drop_lines_after(start_step)
        last = max((line["step"] for line in kept), default=0)
        self._started = time.perf_counter() - max((line.get("seconds") or 0.0 for line in kept), default=0.0)
        if last + log_every <= start_step:
            distributed.warn0(f"{self._path} has no lines of steps {last + 1} to {start_step}; go on without them")
        send_lines(trackers, kept)
        self._warned = False
        self._bar = tqdm(total=num_steps, initial=start_step, unit="step", disable=None)
        self._num_steps = num_steps
        self._times = deque([(time.perf_counter(), start_step)], maxlen=LINES_FOR_SPEED)
        self._last_line = 0.0

    def _drop_lines_after(self, step: int) -> list[dict[str, Any]]:
        """Begin the files of metrics, or continue them after a step; the lines up to it are returned."""
        kept = [line for line in read_metrics(self._path) if line["step"] <= step]
        atomic_write(self._path, "".join(json_text(line) + "\n" for line in kept))
        self._lines = Appender(self._path)
        # TensorBoard then hides the events of the steps that are done again
        self._write_event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        return kept

    def go_back(self, step: int) -> None:
        """Continue after an earlier step: the steps after it are done again, and their lines are dropped."""
        if self._is_main:
            self._lines.close()
            self._drop_lines_after(step)
            self._times = deque([(time.perf_counter(), step)], maxlen=LINES_FOR_SPEED)
            self._bar.n = step
            self._bar.refresh()

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run up to now: this process, and earlier ones up to the lines that they wrote."""
        return time.perf_counter() - self._started if self._is_main else math.nan

    def step_done(self) -> None:
        """Move the progress bar by one step."""
        if self._is_main:
            self._bar.update()

    def write(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one split (`train` or `test`) after `step` steps, and the time up to now."""
        if not self._is_main:
            return
        line = {"step": step, "split": split, **metrics, "seconds": self.seconds}
        self._lines.write(json_text(line).encode() + b"\n")
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _tagged(line).items()]
        self._write_event(step=step, summary=Summary(value=values))
        self._trackers.log(step, _tagged(line))
        self._warn()
        self._print(split, step, metrics)

    def _write_event(self, **fields: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def _warn(self) -> None:
        failed = [(file.path, file.error) for file in (self._lines, self._events) if file.error is not None]
        if failed and not self._warned:
            path, error = failed[0]
            hint = "metrics are kept in memory and written when there is space again"
            self.print(f"warning: cannot write {path}: {error.strerror}; {hint}")
        self._warned = bool(failed)

    def _print(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
        shown = "  ".join(text.format(metrics[name]) for name, text in FORMATS.items() if name in metrics)
        line, now = f"step {step}/{self._num_steps}  {split}: {shown}", time.perf_counter()
        if split == "test":
            self.print(line)
            return
        before, step_before = self._times[0]
        self._times.append((now, step))
        if not self._bar.disable:
            self._bar.set_postfix_str(shown)
        elif now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            seconds_left = (now - before) / max(step - step_before, 1) * (self._num_steps - step)
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


def send_lines(trackers: Trackers, lines: Iterable[dict[str, Any]]) -> None:
    """Send lines of `metrics.jsonl` to the trackers, which leave out what they have already."""
    for line in lines:
        trackers.log(line["step"], _tagged(line))


def _tagged(line: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a line of `metrics.jsonl` by names such as `train/loss`; null is nan."""
    metrics = {name: value for name, value in line.items() if name not in ("step", "split")}
    return {f"{line['split']}/{name}": math.nan if value is None else value for name, value in metrics.items()}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; none where there is no such file.

    A last line that a killed process left unfinished is dropped, and others that are damaged with a warning.
    """
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

    lines = read_metrics(run_dir / METRICS)
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
