"""What several tests need: a small experiment on real images, a finished run, and gradients of real models."""

import dataclasses
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers.descent import Descent, record

import backbones.distributed as distributed
import backbones.machine as machine
from backbones.component import use
from backbones.experiment import Experiment
from backbones.models.airbench import airbench
from backbones.run.run import run
from experiments.digits import digits_resnet18, digits_vit_tiny

if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side: one core each, and for the processes they start
    os.environ["OMP_NUM_THREADS"] = os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    torch.set_num_threads(1)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for time: each function of an oracle is compiled for one call
    os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"  # for time: else it compiles three programs to see what the CPU has


@pytest.fixture(scope="session")
def experiment() -> Experiment:
    """A small ViT with dropout on augmented digits: all that is random is on, and it runs in seconds."""
    return dataclasses.replace(
        digits_vit_tiny,
        model=digits_vit_tiny.model.replace(width=32, depth=1, heads=2, mlp_width=64),
        steps=12,
        batch_size=32,
        log_every=1,
        eval_every=6,
        save_every=6,
    )


AVERAGED_AIRBENCH = dataclasses.replace(
    digits_resnet18, model=use(airbench), steps=4, batch_size=8, eval_every=4, save_every=2, ema=0.9, keep=9
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: BatchNorm, and an average of the parameters. Not to be changed."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    with mock.patch("backbones.evaluation.NUM_BN_BATCHES", 10):  # for time
        run(AVERAGED_AIRBENCH, run_dir=run_dir)
    return run_dir


@pytest.fixture(scope="session", autouse=True)
def faster() -> Iterator[None]:
    """For time, in this process: runs leave an empty `curves.png`, and do not wait for the disk."""
    with (
        mock.patch("backbones.run.run.plot_curves", lambda run_dir: (run_dir / "curves.png").touch()),
        mock.patch("os.fsync", lambda descriptor: None),
    ):
        yield


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests are not part of whatever torchrun they may have been started from."""
    for name in (*distributed.TORCHRUN, *distributed.OTHER_LAUNCHERS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "_warned", set())


def pytest_configure(config: pytest.Config) -> None:
    """`pytest -m gpu` alone sees a GPU: all other tests give the same results on every machine."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests also wait, for processes and disks."""
    return machine.num_cores() + 1


def pytest_collection_finish() -> None:
    """What was imported is not garbage: do not look for any in it."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is no GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(scope="session")
def descent(request: pytest.FixtureRequest) -> Descent:
    """30 gradients of a few convolutions; where a test asks for "vit", of a model with embeddings and attention."""
    return record(getattr(request, "param", "small"))
