"""What a run records while it trains."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from backbones.experiment import Experiment
from backbones.run.checkpoint import Checkpoints, Manifest
from backbones.run.metric_writer import MetricWriter
from backbones.run.spikes import BadStep, SpikeDetector
from backbones.types import Metrics

ZERO = torch.zeros((), dtype=torch.float64)


class RunningMeans:
    """Means of the training metrics since the last line of the log, summed on the device.

    Of a step that is not finite only `nonfinite` counts: its other metrics would make the line NaN.

    `stored` is what `to_json` of the resumed run returned, or nothing.
    """

    def __init__(self, stored: dict[str, Any] | None = None) -> None:
        stored = stored or {}
        self._sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in stored.get("sums", {}).items()}
        self._counts: dict[str, Any] = dict(stored.get("counts", {}))

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of one step."""
        finite = metrics["nonfinite"] == 0
        for name, value in metrics.items():
            count, value = (1, value) if name == "nonfinite" else (finite, torch.where(finite, value, 0))
            self._sums[name] = self._sums.get(name, ZERO) + value  # in float64, on the device of `value`
            self._counts[name] = self._counts.get(name, 0) + count

    def take(self) -> dict[str, float]:
        """Return the means, NaN where no step counts, and reset them."""
        means = {name: (value / self._counts[name]).item() for name, value in self._sums.items()}
        self._counts, self._sums = {}, {}
        return means

    def to_json(self) -> dict[str, Any]:
        """Plain data for a checkpoint, so that a resumed run writes the same lines."""
        return {
            "counts": {name: int(count) for name, count in self._counts.items()},
            "sums": {name: value.item() for name, value in self._sums.items()},
        }


class Timer:
    """Images per second of training alone, without evaluation and saving."""

    def __init__(self) -> None:
        self._stretches: list[tuple[int, float]] = []  # images, seconds
        self.start()

    def start(self) -> None:
        """Begin a stretch of training."""
        self._since = time.perf_counter()

    def stop(self, images: int) -> None:
        """End a stretch, in which `images` were trained on; call it when the device has finished."""
        if images:  # else all its steps were passed over
            self._stretches.append((images, time.perf_counter() - self._since))

    def rate(self) -> float:
        """Of the latest stretch; NaN if there is none."""
        images, seconds = self._stretches[-1] if self._stretches else (math.nan, 1.0)
        return images / seconds

    def mean_rate(self) -> float:
        """Of all stretches except the first, which compiles and warms up, unless it is the only one; NaN if none."""
        stretches = self._stretches[1:] or self._stretches
        seconds = sum(seconds for _, seconds in stretches)
        return sum(images for images, _ in stretches) / seconds if stretches else math.nan


OBJECTIVE = ("data", "model", "augment", "loss", "label_smoothing", "class_weights", "sampling")
"""Fields of an experiment that decide how large a loss is."""

NOT_THE_IMAGES = ("root", "workers", "cache", "download")
"""Options of data sets that say where the images are and how they are read, not which ones."""


def objective(values: dict[str, Any]) -> dict[str, Any]:
    """What decides how large a loss is, of the configuration in a checkpoint."""
    fields = {name: values.get(name) for name in OBJECTIVE}
    options = {name: value for name, value in values["data"]["options"].items() if name not in NOT_THE_IMAGES}
    return {**fields, "data": {**values["data"], "options": options}}


@dataclass
class RunLog:
    """What a run records while it trains: metrics, checkpoints, and steps that went wrong."""

    writer: MetricWriter
    checkpoints: Checkpoints
    spikes: SpikeDetector
    report_bad_step: Callable[[BadStep], None]
    means: RunningMeans = field(default_factory=RunningMeans)
    timer: Timer = field(default_factory=Timer)

    def restart(self, saved: Manifest, experiment: Experiment) -> None:
        """Continue as it was when a checkpoint was saved; its losses count for spikes if the objective is the same."""
        self.means = RunningMeans(saved.since_log)
        is_same = objective(saved.experiment) == objective(experiment.to_json())
        self.spikes.restart(saved.recent_losses if is_same else ())
