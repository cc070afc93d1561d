"""Real processes: gloo, DistributedDataParallel; and torchrun, see also run/test_preemption.py."""

import dataclasses
import json
import os
import re
import subprocess
from pathlib import Path
from unittest import mock

import pytest
from helpers import kill_agents
from helpers.poison import Linear, WithUnused
from helpers.processes import run_ranks
from helpers.resumed import small_resnet
from helpers.runs import SMALL

import backbones.distributed as distributed
from backbones.component import use
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.optim import sam_sgd, sgd
from backbones.optim.schedule import constant
from backbones.run.metric_lines import read_metrics
from backbones.run.run import run

RANKS = Path(__file__).parent / "helpers" / "ranks.py"


@pytest.mark.slow
def test_seam_between_func_and_ddp(tmp_path: Path) -> None:
    """See ranks.py: gradients, accumulation, BatchNorm statistics and sums, each against its definition."""
    finished = run_ranks(2, RANKS, "seam", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("all equal") == 2


OPTIONS = [
    {},
    {"accumulate": 2},
    {"optim": use(sam_sgd, lr=0.01), "ema": 0.9, "clip": 1.0, "accumulate": 2},
    {"model": use(small_resnet), "sync_batch_norm": True, "optim": use(sam_sgd, lr=0.01)},
    {"model": use(WithUnused, dropout=0.0), "optim": use(sgd, lr=0.01, weight_decay=0.1), "steps": 3},
]
COMPILED = [
    {"compile": "on", "model": use(Linear, dropout=0.0), "optim": use(sgd, lr=0.01), "steps": 5},
    {"compile": "on", "model": use(small_resnet), "sync_batch_norm": True, "optim": use(sgd, lr=0.01), "steps": 3},
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "every"), [("eager", OPTIONS), ("compiled", COMPILED)])
def test_two_processes_train_as_one_does(name: str, every: list[dict], experiment: Experiment, tmp_path: Path) -> None:
    without_dropout = experiment.model.replace(dropout=0.0)
    experiments = [
        dataclasses.replace(experiment, **{"model": without_dropout, "steps": 6, **options}) for options in every
    ]
    configs = [json.dumps(experiment.to_json()) for experiment in experiments]
    finished = run_ranks(2, RANKS, "train", tmp_path / name, "no", *configs, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert ("2 buckets" in finished.stdout) == (name == "compiled")
    for position, experiment in enumerate(experiments):
        together, alone = (tmp_path / folder / str(position) for folder in (name, "alone"))
        results = [json.loads((together / f"result-{rank}.json").read_text()) for rank in range(2)]
        assert results[0]["params_sha256"] == results[1]["params_sha256"]

        run(dataclasses.replace(experiment, compile="off"), run_dir=alone)
        lines, others = (read_metrics(run_dir) for run_dir in (alone, together))
        assert len(lines) == len(others) == experiment.steps + 1
        for one, two in zip(lines, others, strict=True):
            assert (one["step"], one["split"]) == (two["step"], two["split"])
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-4), every[position]
            assert two.get("accuracy") == pytest.approx(one.get("accuracy"), abs=1e-6), every[position]


@pytest.mark.slow
def test_two_processes_then_one_then_two_train_as_one_does(experiment: Experiment, tmp_path: Path) -> None:
    """The same samples in the same order, and the same losses."""
    model = experiment.model.replace(dropout=0.0)
    experiment = dataclasses.replace(experiment, model=model, schedule=use(constant), eval_every=99)
    for steps, num_processes in ((3, 2), (6, 1), (9, 2)):
        config = json.dumps(dataclasses.replace(experiment, steps=steps).to_json())
        done = run_ranks(num_processes, RANKS, "train", tmp_path / "parts", "auto", config, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert steps == 3 or f"resumed from step {steps - 3}\n" in done.stdout
    run(dataclasses.replace(experiment, steps=9), run_dir=tmp_path / "whole")
    lines, parts = (
        [line for line in read_metrics(tmp_path / name) if line["split"] == "train"] for name in ("whole", "parts/0")
    )
    assert [line["step"] for line in parts] == [line["step"] for line in lines] == list(range(1, 10))
    for one, other in zip(lines, parts, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)


def in_two_directories(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = f"{SMALL} --steps 4 --save-every 2 --data mine:data".split()
    return run_ranks(2, RANKS, "elsewhere", *command, *options, cwd=folder)


SLOW = """
import time
import backbones.augment
import backbones.data

def data():
    time.sleep({data})
    return backbones.data.digits()

def augment():
    time.sleep({model})
    return backbones.augment.identity()
"""


@pytest.mark.slow
def test_ranks_that_see_different_disks(tmp_path: Path) -> None:
    """Rank 0 alone looks at the run folder; what another rank misses it says in one line, and nobody waits for it
    longer than --timeout, but while data are read."""
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
        (tmp_path / rank / "mine.py").write_text("from backbones.data import digits as data\n")
    for options in (["run"], ["run", "--steps=6", "--resume"]):
        done = in_two_directories(tmp_path, "--run-dir", *options)
        assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "1").iterdir() if path.name != "__pycache__"] == ["mine.py"]

    (tmp_path / "1" / "mine.py").unlink()
    errors = in_two_directories(tmp_path).stderr
    assert re.search(r"^error: rank 1 on \S+: cannot import mine:data: there is no module 'mine'", errors, re.MULTILINE)
    assert "Traceback" not in errors

    for rank in ("0", "1"):
        (tmp_path / rank / "mine.py").write_text(SLOW.format(data=6 - 6 * int(rank), model=600 * int(rank)))
    errors = in_two_directories(tmp_path, "--timeout=5", "--augment=mine:augment").stderr
    assert re.search(r"^error: rank 0 on \S+ has lost another process: .*5000ms", errors, re.MULTILINE | re.IGNORECASE)


@pytest.mark.slow
def test_torchruns_on_several_machines_go_on_after_one_of_their_processes_is_killed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """tests/helpers/kill_agents.py does it 20 times."""
    with mock.patch.dict(os.environ):
        kill_agents.main(kills=1, steps=40)
    assert "killed 1 processes (worker at " in capsys.readouterr().out


TORCHRUN = dict.fromkeys(distributed.TORCHRUN, "1") | {"RANK": "0", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": ""},
        {"LOCAL_RANK": "0"},
        {**TORCHRUN, "WORLD_SIZE": ""},
        {**TORCHRUN, "RANK": "one"},
        {**TORCHRUN, "RANK": "1"},
        {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "23456"},
    ],
)
def test_half_of_an_environment_is_refused(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    shown = re.escape(" ".join(f"{name}={environment[name]}" for name in distributed.TORCHRUN if name in environment))
    with pytest.raises(InputError, match=f"the environment has {shown}, which torchrun did not set"):
        distributed.join()


@pytest.mark.parametrize("environment", [TORCHRUN, {"MASTER_ADDR": "10.0.0.1"}, {"SLURM_STEP_NUM_TASKS": "1"}, {}])
def test_one_process(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.join()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


@pytest.mark.parametrize("name", distributed.OTHER_LAUNCHERS)
def test_processes_of_another_launcher_do_not_train_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "4")
    with pytest.raises(InputError, match=f"{name} is 4: each of these processes would train alone"):
        distributed.join()
    for each, value in TORCHRUN.items():
        monkeypatch.setenv(each, value)
    distributed.join()  # torchrun in a task of Slurm


@pytest.mark.parametrize(("rank", "local_rank", "calls"), [(0, 0, 1), (1, 1, 0), (8, 0, 1)])
def test_each_machine_prepares_its_disk_once(
    rank: int, local_rank: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    called: list[int] = []
    distributed.once_a_node(lambda: called.append(rank))
    assert len(called) == calls
