"""Metrics of a run, while it trains: the terminal, `metrics.jsonl`, TensorBoard and trackers. Rank 0 only."""

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
from backbones.run.files import Appender, atomic_write, discard, json_text
from backbones.run.metric_lines import METRICS, read_metrics, tagged
from backbones.run.trackers import Trackers

SECONDS_BETWEEN_LINES = 10.0
"""Seconds between lines on training where there is no progress bar, as in output that is piped to a file."""

LINES_FOR_SPEED = 10
"""The time left is estimated from the steps since so many lines before, so that the first one, which compiles, does not
count for long."""

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
    the last line that is kept is `log_every` steps or more before `start_step`.
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
        kept = [line for line in read_metrics(self._path.parent) if line["step"] <= step]
        text = "".join(json_text(line) + "\n" for line in kept)
        if not self._path.exists() or self._path.read_bytes() != text.encode():  # a rewrite needs disk space
            atomic_write(self._path, text)
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
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in tagged(line).items()]
        self._write_event(step=step, summary=Summary(value=values))
        self._trackers.log(step, tagged(line))
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
        """Print a line, above the progress bar if there is one. A closed pipe or a full disk does not end the run."""
        if self._is_main:
            try:
                tqdm.write(line)
                sys.stdout.flush()
            except BrokenPipeError:  # Ctrl-C has ended `tee` too, say, and the state must still be saved
                discard(sys.stdout)
            except OSError:  # printed with a later line, when there is space again
                pass

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
        trackers.log(line["step"], tagged(line))
