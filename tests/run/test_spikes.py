import dataclasses
import json
import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.poison import BAD, POISONED, SAMPLE, poison
from helpers.trees import write_folder
from PIL import Image

import backbones.distributed as distributed
import backbones.random as random
import backbones.tree as tree
from backbones.augment import mixup, repeated
from backbones.component import use
from backbones.data import Dataset, digits, image_folder, make_batches
from backbones.experiment import Experiment
from backbones.losses import binary_cross_entropy, cross_entropy
from backbones.run.analysis.pictures import to_rgb
from backbones.run.checkpoint import Checkpoints
from backbones.run.loop import Diverged
from backbones.run.run import run
from backbones.run.spikes import (
    MOST_STEPS,
    BadStep,
    SpikeDetector,
    make_bad_step_report,
    make_spike_detector,
    recompute_batch,
)
from backbones.types import CPU


def bad_steps(detector: SpikeDetector, losses: Sequence[float], first: int = 1, flags: Sequence[int] = ()) -> list[int]:
    for step, loss in enumerate(losses, start=first):
        detector.add(step, {"loss": torch.tensor(loss), "nonfinite": torch.tensor(int(step in flags))})
    return [bad.step for bad in detector.bad_steps()]


def noisy(n: int, scale: float = 0.1) -> list[float]:
    return [1 + scale * math.sin(37 * i) for i in range(n)]


def test_a_spike_is_far_above_the_median() -> None:
    assert bad_steps(SpikeDetector(10, margin=0.1), [*noisy(50), 9.0, *noisy(50)]) == [51]
    for detector in (SpikeDetector(None, margin=0.1), SpikeDetector(1000, margin=0.1), SpikeDetector(10, margin=10)):
        assert bad_steps(detector, [*noisy(50), 9.0, *noisy(50)]) == []
    assert bad_steps(SpikeDetector(10, margin=0.1), [*noisy(19), 9.0]) == []  # too few before it
    assert bad_steps(SpikeDetector(10, margin=0.1), [*noisy(20), 9.0]) == [21]
    assert bad_steps(SpikeDetector(10, margin=0.1), [*noisy(50), 9.0, 20.0, 9.0, 1.0, 20.0, 30.0]) == [51, 52, 56]
    deviation = sorted(abs(loss - sorted(noisy(49))[24]) for loss in noisy(49))[24]
    bound = sorted(noisy(49))[24] + 10 * deviation
    assert bad_steps(SpikeDetector(10, margin=0.1), [*noisy(49), bound - 0.01]) == []
    assert bad_steps(SpikeDetector(10, margin=0.1), [*noisy(49), bound + 0.01]) == [50]


def test_a_loss_that_falls_or_rises_slowly_has_no_spike() -> None:
    assert bad_steps(SpikeDetector(10, margin=0.1), [5 * 0.97**i for i in range(300)]) == []
    assert bad_steps(SpikeDetector(10, margin=0.1), [0.01 * i for i in range(300)]) == []
    small = [1e-3 * (1 + i % 7) for i in range(200)]
    assert bad_steps(SpikeDetector(10, margin=0.5), [*small, 0.4]) == []  # one mistake, where there are none else
    rising = [1.0, 1.1] * 50 + [1.1 * 1.07**i for i in range(20)]
    assert bad_steps(SpikeDetector(10, margin=0.5), rising) == []  # each little above the one before it


def test_steps_that_are_not_finite() -> None:
    detector = SpikeDetector(10, margin=0.1)
    losses = noisy(50)
    losses[30], losses[40] = math.nan, 9.0
    assert bad_steps(detector, losses, flags=[31, 45]) == [31, 41, 45] and len(detector.recent) == 48
    assert bad_steps(detector, []) == []


def test_the_same_spikes_are_found_after_a_resume() -> None:
    losses = [*noisy(150), 9.0]
    whole, first = SpikeDetector(10, margin=0.1), SpikeDetector(10, margin=0.1)
    assert bad_steps(whole, losses) == [151] and bad_steps(first, losses[:145]) == []
    recent = json.loads(json.dumps([*first.recent]))
    second = SpikeDetector(10, margin=0.1)
    second.restart(recent)
    assert len(recent) == 100 and bad_steps(second, losses[145:], first=146) == [151] and second.recent == whole.recent


def test_the_margin_is_a_share_of_the_loss_of_a_guess() -> None:
    for loss, guess in ((cross_entropy, math.log(10)), (binary_cross_entropy, math.log(2))):
        none = make_spike_detector(dataclasses.replace(POISONED, loss=use(loss), spike=None), 10)
        assert bad_steps(none, [*noisy(50), 1e6]) == []
        detector = make_spike_detector(dataclasses.replace(POISONED, loss=use(loss)), 10)
        assert bad_steps(detector, [*[0.0] * 50, 0.249 * guess, 0.0, 0.5 * guess]) == [53]


def drawn(path: Path, number: int, lines: int) -> torch.Tensor:
    """The images of a picture, each 16x16 enlarged by 6, with `lines` of text below; [N, 16, 16, 3]."""
    with Image.open(path) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    down = 96 + 13 * lines + 6
    top = len(pixels) - down * math.ceil(number / 8)
    corners = [(top + down * (i // 8) + 3, 6 + 102 * (i % 8) + 3) for i in range(number)]
    return torch.stack([pixels[y : y + 96 : 6, x : x + 96 : 6] for y, x in corners])


def test_the_samples_of_a_spike_are_told_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(POISONED, run_dir=tmp_path)
    content = json.loads((tmp_path / "spikes" / f"{BAD}.json").read_text())
    batch = make_batches(digits().train, seed=0, batch_size=32, device=CPU)(BAD - 1)
    samples = {sample["index"]: sample for sample in content["samples"]}
    assert content["step"] == BAD and "spike" in content["reason"] and content["parameters_of_step"] == 40
    assert samples.keys() == set(batch.index.tolist()) and next(iter(samples)) == SAMPLE
    assert all(samples[i]["class"] == str(k) for i, k in zip(batch.index.tolist(), batch.labels.tolist(), strict=True))
    losses = [sample["loss"] for sample in content["samples"]]
    assert losses == sorted(losses, reverse=True) and losses[0] > 100 > 10 > losses[1]

    rows = [batch.index.tolist().index(i) for i in samples]
    augmented = poison()(random.sample_keys(random.key(0), BAD - 1, batch.index, batch.epoch), batch)
    images = torch.stack([to_rgb(augmented.images[row]) for row in rows])
    assert torch.equal(drawn(tmp_path / "spikes" / f"{BAD}.png", 32, lines=3), images)
    assert (images[0] == 255).all() and not torch.equal(images[1:], batch.images[rows[1:]].permute(0, 2, 3, 1))

    (spike, told) = [line for line in capsys.readouterr().out.splitlines() if f"step {BAD}" in line]
    assert spike.startswith(f"step {BAD}/60  the loss of ") and " is a spike (" in spike
    assert told.startswith(
        f"step {BAD}: its samples, by their loss under the parameters of step 40: {SAMPLE} (7, loss "
    )
    assert " and 24 others; see " in told
    assert [path.name for path in (tmp_path / "spikes").iterdir() if path.stem != str(BAD)] == []


def test_losses_are_those_of_the_parameters_and_of_one_view(tmp_path: Path) -> None:
    """Not of an average of them, nor with test-time augmentation."""
    for name, options in (("plain", {}), ("average", {"ema": 0.9, "tta": "flip"})):
        run(dataclasses.replace(POISONED, **options), run_dir=tmp_path / name)
    found = [json.loads((tmp_path / name / "spikes" / f"{BAD}.json").read_text()) for name in ("plain", "average")]
    assert found[0] == found[1]


def test_a_step_that_is_not_finite_is_reported_too(tmp_path: Path) -> None:
    nan = dataclasses.replace(POISONED, augment=POISONED.augment.replace(pixel=math.nan), spike=None)
    with pytest.raises(Diverged, match=f"not finite at step {BAD}"):
        run(nan, run_dir=tmp_path / "stop")
    run(dataclasses.replace(nan, nonfinite="skip"), run_dir=tmp_path / "skip")
    for name in ("stop", "skip"):
        content = json.loads((tmp_path / name / "spikes" / f"{BAD}.json").read_text())
        assert content["parameters_of_step"] == 40 and "is not finite" in content["reason"]
        assert content["samples"][0] == {"index": SAMPLE, "class": "7", "loss": None}
        assert content["samples"][1]["loss"] > content["samples"][2]["loss"] > 0


def report(run_dir: Path, experiment: Experiment, steps: Sequence[int], dataset: Dataset | None = None) -> list[str]:
    """What is printed about steps of a run that has just begun."""
    dataset, lines = dataset or digits(), []
    (run_dir / "checkpoints").mkdir(parents=True)
    with closing(Checkpoints(run_dir / "checkpoints", experiment=experiment, info=dataset.info)) as checkpoints:
        checkpoints.save(experiment.make(dataset).state, {})
    for step in steps:
        make_bad_step_report(run_dir, experiment, dataset.train, CPU, lines.append)(BadStep(step, True, "a test"))
    return lines


def test_files_and_mixed_targets_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = use(image_folder, root=str(write_folder(tmp_path / "photos é")))
    dataset = data.make(device=CPU)
    experiment = dataclasses.replace(POISONED, data=data, augment=use(mixup, alpha=1.0), batch_size=6)
    (line,) = report(tmp_path / "run", experiment, [3], dataset)
    samples = json.loads((tmp_path / "run" / "spikes" / "3.json").read_text())["samples"]
    batch = make_batches(dataset.train, seed=0, batch_size=6, device=CPU)(2)
    assert {sample["index"] for sample in samples} == set(batch.index.tolist())
    for sample in samples:
        path = Path(sample["file"])
        assert path.is_file() and path.parent.name == sample["class"] and path.parent.parent.name == "train"
        assert any(sample["class"] in each for each in sample["target"])
    assert any(len(sample["target"]) == 2 for sample in samples) and f": {samples[0]['file']} (" in line


def test_what_goes_wrong_with_it_stops_nothing(tmp_path: Path) -> None:
    tmp_path.joinpath("run").mkdir()
    (tmp_path / "run" / "spikes").write_text("")  # where a folder is wanted
    samples, warning = report(tmp_path / "run", POISONED, [1])
    assert samples.startswith("step 1: its samples") and warning.startswith("warning: cannot report step 1: ")
    wrong = dataclasses.replace(POISONED, augment=use(repeated, times=7))
    lines = report(tmp_path / "other", wrong, [1, 2])
    assert lines == [f"warning: cannot report step {i}: {MULTIPLE}" for i in (1, 2)]


MULTIPLE = "got 32 images, wanted a multiple of 7: choose --batch-size so that each process gets a multiple"


def test_only_a_few_steps_of_a_run_are_reported(tmp_path: Path) -> None:
    small = dataclasses.replace(POISONED, batch_size=2)
    lines = report(tmp_path, small, [*range(1, MOST_STEPS + 3), 1])
    assert len(lines) == MOST_STEPS + 1 and len([*(tmp_path / "spikes").glob("*.png")]) == MOST_STEPS == 10


def test_rank_0_sees_what_all_ranks_have_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """An augmentation of whole batches, such as `repeated`, is that of each rank's part."""
    experiment = dataclasses.replace(POISONED, augment=use(repeated, times=16), sampling="balanced", seed=3)
    source, augment, parts = digits().train, repeated(times=16), []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        batch = make_batches(source, seed=3, batch_size=32, device=CPU, sampling="balanced")(4)
        parts.append(augment(random.sample_keys(random.key(3), 4, batch.index, batch.epoch), batch))
    monkeypatch.setattr(distributed, "rank", lambda: 0)

    def predict(images: torch.Tensor) -> torch.Tensor:
        return images.to(torch.float32).flatten(1)[:, 100:110] / 50

    seen, losses = recompute_batch(5, experiment, source, predict, CPU)
    assert tree.sha256(seen) == tree.sha256(tree.map(lambda *leaves: torch.cat(leaves), *parts))
    assert torch.equal(losses, cross_entropy(predict(seen.images), seen.labels)) and len(losses.unique()) == 2
