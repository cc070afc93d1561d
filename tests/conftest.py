"""What several tests need: a small experiment on real images, and real processes."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from descent import Descent, record

import train
from experiments import EXPERIMENTS, Experiment
from experiments.base import MODEL

if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side: one core each, and for what they start
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# A pass that would trace every step a second time, to find that its 0-D float64 tensors are no Python scalars.
os.environ["TENSORIFY_PYTHON_SCALARS"] = "0"

ROOT = Path(__file__).parent.parent


@pytest.fixture
def experiment() -> Experiment:
    """A small ViT with dropout on augmented digits: all that is random is on, and it runs in seconds."""
    return dataclasses.replace(
        EXPERIMENTS["digits-vit-tiny"],
        model=MODEL["vit-tiny"](patch_size=8, width=32, depth=2, heads=2, mlp_width=64, dropout=0.1),
        steps=12,
        batch_size=32,
        log_every=1,
        eval_every=6,
        save_every=6,
    )


AVERAGED_SHUFFLENET = dataclasses.replace(
    EXPERIMENTS["digits-resnet18"],
    model=MODEL["shufflenet-g8"](),
    steps=4,
    batch_size=8,
    eval_every=4,
    save_every=2,
    ema=0.9,
    keep=9,
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: BatchNorm, and an average of the parameters. Not to be changed."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    train.main(AVERAGED_SHUFFLENET, run_dir=run_dir)
    return run_dir


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests are not part of whatever torchrun they may have been started from."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session", params=["vit", "resnet"])
def descent(request: pytest.FixtureRequest) -> Descent:
    """50 gradients of a model with embeddings and attention, or with convolutions and BatchNorm."""
    return record(request.param)


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm of what was wanted."""
    return ((got - wanted).norm() / wanted.norm()).item()


def start_torchrun(num_processes: int, *args: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Start a script in several processes on this machine; options of torchrun come before the script."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen([*launcher, *args], cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True)


def torchrun(num_processes: int, *args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in several processes on this machine to its end."""
    process = start_torchrun(num_processes, *args, cwd=cwd)
    stdout, stderr = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
