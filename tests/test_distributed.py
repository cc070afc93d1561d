"""Real processes: torchrun, gloo, DistributedDataParallel."""

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import torchrun

import train
from backbones.metric_writer import read_metrics
from experiments import Experiment
from experiments.base import OPTIM

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
