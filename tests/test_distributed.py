"""Real processes: torchrun, gloo, DistributedDataParallel."""

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import torchrun

import train
from backbones.metric_writer import read_metrics
from experiments import Experiment
from experiments.base import OPTIM, SCHEDULE

RANKS = Path(__file__).parent / "ranks.py"


def test_seam_between_func_and_ddp(tmp_path: Path) -> None:
    """See ranks.py: gradients, accumulation, BatchNorm statistics and sums, each against its definition."""
    finished = torchrun(2, RANKS, "seam", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("all equal") == 2


OPTIONS = [
    {},
    {"accumulate": 2},
    {"compile": "on", "steps": 5},
    {"optim": OPTIM["sam-sgd"](lr=0.01), "ema": 0.9, "clip": 1.0, "accumulate": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_two_processes_train_as_one_does(options: dict[str, object], experiment: Experiment, tmp_path: Path) -> None:
    without_dropout = dataclasses.replace(experiment.model, dropout=0.0)
    experiment = dataclasses.replace(experiment, **{"model": without_dropout, "steps": 50, "eval_every": 50, **options})
    finished = torchrun(2, RANKS, "train", json.dumps(experiment.to_json()), tmp_path / "together", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    results = [json.loads((tmp_path / f"result-{rank}.json").read_text()) for rank in range(2)]
    assert results[0]["params_sha256"] == results[1]["params_sha256"]

    alone = train.main(dataclasses.replace(experiment, compile="off"), run_dir=tmp_path / "alone")
    assert results[0]["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    lines, together = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("alone", "together"))
    assert len(lines) == len(together) == experiment.steps + 1
    for one, two in zip(lines, together, strict=True):
        assert (one["step"], one["split"]) == (two["step"], two["split"])
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two.get("accuracy") == pytest.approx(one.get("accuracy"), abs=1e-6)


def test_two_processes_then_one_then_two_train_as_one_does(experiment: Experiment, tmp_path: Path) -> None:
    """The same samples in the same order, and the same losses."""
    model = dataclasses.replace(experiment.model, dropout=0.0)
    experiment = dataclasses.replace(experiment, model=model, schedule=SCHEDULE["constant"](), eval_every=99)
    for steps, num_processes in ((15, 2), (30, 1), (45, 2)):
        config = json.dumps(dataclasses.replace(experiment, steps=steps).to_json())
        done = torchrun(num_processes, RANKS, "train", config, tmp_path / "parts", "auto", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert steps == 15 or f"goes on from step {steps - 15}\n" in done.stdout
    train.main(dataclasses.replace(experiment, steps=45), run_dir=tmp_path / "whole")
    lines, parts = (
        [line for line in read_metrics(tmp_path / name / "metrics.jsonl") if line["split"] == "train"]
        for name in ("whole", "parts")
    )
    assert [line["step"] for line in parts] == [line["step"] for line in lines] == list(range(1, 46))
    for one, other in zip(lines, parts, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
