"""Steps at which a training goes wrong, and the samples that they saw: in the folder `spikes/` of a run.

B samples of a batch.
"""

import dataclasses
import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import backbones.distributed as distributed
import backbones.random as random
import backbones.tree as tree
from backbones.data import Source, make_batches
from backbones.errors import shorten
from backbones.experiment import Experiment
from backbones.run.analysis.model_evaluation import Predict, load_predictor
from backbones.run.analysis.pictures import Tile, caption, draw_tiles, in_rows
from backbones.run.checkpoint import find_checkpoint, read_checkpoint, without_average
from backbones.run.files import atomic_path, write_json
from backbones.types import Batch, Metrics

SPIKES = "spikes"
"""The folder."""

WINDOW, LEAST = 100, 20
"""Losses of how many steps before it a loss is compared with: at most, and at least."""

MARGIN = 0.25
"""How far a spike must be above each of these losses, as a share of the loss of equal probabilities for all classes."""

MOST_STEPS, MOST_IMAGES = 10, 64
"""Steps of a run that are reported, and images of each that are drawn."""


class BadStep(NamedTuple):
    """A step that went wrong."""

    step: int
    finite: bool
    """Whether the loss, the gradient and the update are finite: then the loss is a spike."""
    reason: str


class SpikeDetector:
    """Finds the steps that are not finite, and spikes of the loss.

    Args:
        threshold: a loss is a spike if it is this many median absolute deviations above the median of the last
            `WINDOW` finite losses before it, of which there must be `LEAST`; None for no spikes.
        margin: and if it is above each of them by this much.
    """

    def __init__(self, threshold: float | None, *, margin: float) -> None:
        self._threshold, self._margin = threshold, margin
        self.restart(())

    def restart(self, recent: Sequence[float]) -> None:
        """Begin again with the last losses before a step, which a checkpoint has kept."""
        self.recent = deque(recent, maxlen=WINDOW)
        self._waiting: list[tuple[int, Tensor, Tensor]] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Take note of a step, whose metrics may not be computed yet."""
        self._waiting.append((step, metrics["loss"], metrics["nonfinite"]))

    def bad_steps(self) -> list[BadStep]:
        """The bad ones of the steps added since the last call, in their order; waits for the device."""
        if not self._waiting:
            return []
        steps, *values = zip(*self._waiting, strict=True)
        losses, flags = torch.stack([torch.stack(each).to(torch.float64) for each in values]).tolist()
        self._waiting = []
        bad = []
        for step, loss, nonfinite in zip(steps, losses, flags, strict=True):
            if nonfinite:
                bad.append(BadStep(step, False, "the loss, a gradient or an update is not finite"))
                continue
            reason = self._spike(loss)
            if reason is not None:
                bad.append(BadStep(step, True, reason))
            self.recent.append(loss)
        return bad

    def _spike(self, loss: float) -> str | None:
        if self._threshold is None or len(self.recent) < LEAST:
            return None
        median = statistics.median(self.recent)
        deviation = statistics.median(abs(each - median) for each in self.recent)
        if loss <= max(median + self._threshold * deviation, max(self.recent) + self._margin):
            return None
        return (
            f"the loss of {loss:.4g} is a spike ({median:.4g} +- {deviation:.2g} in the last {len(self.recent)} steps)"
        )


def make_spike_detector(experiment: Experiment, num_classes: int) -> SpikeDetector:
    """The detector of an experiment's bad steps."""
    logits, labels = torch.zeros(1, num_classes), torch.zeros(1, dtype=torch.int64)
    of_a_guess = experiment.make_loss()(logits, labels, targets=None, label_smoothing=0.0).item()
    return SpikeDetector(experiment.spike, margin=MARGIN * of_a_guess)


def make_bad_step_report(
    run_dir: Path, experiment: Experiment, source: Source, device: torch.device, print_line: Callable[[str], None]
) -> Callable[[BadStep], None]:
    """What reports a bad step of a run: `spikes/STEP.json` lists its samples, and `spikes/STEP.png` shows them.

    They are made again from the seed and the step: nothing is kept for them. The samples with the largest losses come
    first. These are losses under the parameters of the newest checkpoint, which is of an earlier step: those of the
    step itself are not stored, and the current ones were trained on these samples, or are not finite. Only rank 0
    reports, at most `MOST_STEPS` steps of a run. If that fails, the reason is printed, and the training goes on.
    """
    folder = run_dir / SPIKES

    def report(bad: BadStep) -> None:
        if not distributed.is_main():
            return
        if len({path.stem for path in folder.glob("*.json")} - {str(bad.step)}) >= MOST_STEPS:
            return
        try:
            saved = read_checkpoint(find_checkpoint(run_dir))
            checkpoint, step = saved._replace(arrays=without_average(saved.arrays)), saved.manifest.step
            predict = load_predictor(checkpoint, dataclasses.replace(experiment, tta="none"), device)
            batch, losses = recompute_batch(bad.step, experiment, source, predict, device)
            samples, tiles = describe_samples(batch, losses, source)
            shown = [
                f"{sample.get('file', sample['index'])} ({sample['class']}, {tile.caption[-1]})"
                for sample, tile in zip(samples, tiles, strict=True)
            ]
            about = f"its samples, by their loss under the parameters of step {step}"
            print_line(f"step {bad.step}: {about}: {shorten(shown)}; see {folder / str(bad.step)}.json and .png")
            folder.mkdir(exist_ok=True)
            with atomic_path(folder / f"{bad.step}.png") as path:
                title = f"{experiment.name}, step {bad.step}: {bad.reason}. Losses under the parameters of step {step}"
                draw_tiles(in_rows(tiles[:MOST_IMAGES]), path, title=title)
            content = {"step": bad.step, "reason": bad.reason, "parameters_of_step": step, "samples": samples}
            write_json(folder / f"{bad.step}.json", content)
        except Exception as error:  # whatever it is
            print_line(f"warning: cannot report step {bad.step}: {error}")

    return report


def recompute_batch(
    step: int, experiment: Experiment, source: Source, predict: Predict, device: torch.device
) -> tuple[Batch, Tensor]:
    """The whole batch of a step of training, counted from 1, as the model saw it.

    Returns:
        The batch, of B samples, and the loss of each, [B] float32, without class weights; on the CPU.
    """
    whole = make_batches(
        source,
        seed=experiment.seed,
        batch_size=experiment.batch_size,
        device=device,
        sampling=experiment.sampling,
        num_steps=step,
        whole=True,
    )(step - 1)
    augment = experiment.augment.make(num_classes=source.info.num_classes, device=device)
    key, loss = random.key(experiment.seed, device=device), experiment.make_loss()
    batches, losses = [], []
    for parts in zip(*(leaf.chunk(distributed.world_size()) for leaf in tree.leaves(whole)), strict=True):
        batch = tree.unflatten(whole, parts)  # what one rank has augmented
        batch = augment(random.sample_keys(key, step - 1, batch.index, batch.epoch), batch)
        logits = torch.cat([predict(images) for images in batch.images.chunk(experiment.accumulate)])
        each = loss(logits, batch.labels, targets=batch.targets, label_smoothing=experiment.label_smoothing)
        losses.append((each * batch.weight).cpu())
        batches.append(tree.map(Tensor.cpu, batch))
    return tree.map(lambda *leaves: torch.cat(leaves), *batches), torch.cat(losses)


def describe_samples(batch: Batch, losses: Tensor, source: Source) -> tuple[list[dict[str, Any]], list[Tile]]:
    """A record of each sample, as plain data, and its picture; the largest losses and NaN come first."""
    samples, tiles = [], []
    for i in losses.argsort(descending=True, stable=True).tolist():
        index, loss = int(batch.index[i]), losses[i].item()
        label = source.info.class_names[source.labels[index]]
        sample: dict[str, Any] = {"index": index, "class": label, "loss": loss if math.isfinite(loss) else None}
        if batch.targets is not None:
            sample["target"] = caption(batch.targets[i], source.info.class_names)
        if source.file_name is not None:
            sample["file"] = source.file_name(index)
        samples.append(sample)
        tiles.append(Tile(batch.images[i], [f"sample {index}", *sample.get("target", [label]), f"loss {loss:.3g}"]))
    return samples, tiles
