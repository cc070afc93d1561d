import dataclasses
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import optree
import pytest
import torch

import backbones.machine as machine
import backbones.run.provenance as provenance
from backbones.data import digits
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.run.provenance import list_trained, read_starts, record_start
from backbones.run.run import run


@pytest.fixture
def short(experiment: Experiment) -> Experiment:
    return dataclasses.replace(experiment, steps=4, eval_every=4, save_every=2)


def test_what_a_run_was_made_with(short: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--run-dir", "a folder"])
    run(short, run_dir=tmp_path)
    run(dataclasses.replace(short, steps=6), run_dir=tmp_path, resume="latest")
    first, second = read_starts(tmp_path)
    assert (first["step"], first["changes"]) == (0, {})
    assert (second["step"], second["changes"]) == (4, {"steps": "4 -> 6"})
    assert first["command"] == "train.py --run-dir 'a folder'" and first["seed"] == short.seed
    assert first["packages"]["torch"] == version("torch") and first["packages"]["optree"] == optree.__version__
    assert first["num_threads"] == torch.get_num_threads() and first["num_processes"] == 1 and first["device"] == "cpu"
    assert first["malloc"] == machine.describe_malloc()
    assert first["python"] == ".".join(map(str, sys.version_info[:3]))
    assert first["data_sha256"] == second["data_sha256"] and len(first["data_sha256"]["train"]) == 64


def test_packages_without_metadata_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an interrupted installation leaves them."""
    found = [SimpleNamespace(name=name, version=version) for name, version in (("b", "2"), (None, None), ("a", "1"))]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: found)
    assert provenance._packages.__wrapped__() == {"a": "1", "b": "2"}


def test_a_recorded_number_of_one_thread_is_not_torchruns_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(machine, "num_cores", lambda: 8)
    before = torch.get_num_threads()
    with provenance.recorded_threads([{"num_threads": 3}, {"num_threads": 1}]):
        machine.set_num_threads(None)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before and os.environ["OMP_NUM_THREADS"] == "1"


def test_the_commit_and_whether_it_was_dirty(short: Experiment, tmp_path: Path, monkeypatch) -> None:
    def git(*args: str) -> str:
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", *args]
        return subprocess.run(command, cwd=tmp_path / "repo", check=True, capture_output=True, text=True).stdout.strip()

    def record(name: str) -> tuple[str | None, bool | None]:
        (tmp_path / name).mkdir()
        record_start(tmp_path / name, short, digits(), torch.device("cpu"), step=0, changes={})
        (entry,) = read_starts(tmp_path / name)
        return entry["git_commit"], entry["git_dirty"]

    (tmp_path / "repo").mkdir()
    monkeypatch.setattr("backbones.run.provenance.ROOT", tmp_path / "repo")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert record("none") == (None, None)
    git("init")
    (tmp_path / "repo" / "file").write_text("1")
    git("add", ".")
    git("commit", "-m", "x")
    assert record("clean") == (git("rev-parse", "HEAD"), False)
    (tmp_path / "repo" / "file").write_text("2")
    assert record("dirty") == (git("rev-parse", "HEAD"), True)
    monkeypatch.setenv("PATH", "")
    assert record("no-git") == (None, None)


def test_damaged_history(tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text("[{")
    with pytest.raises(InputError, match=r"provenance\.json is damaged .*rename it"):
        read_starts(tmp_path)


def test_starts_whose_steps_were_done_again_do_not_count() -> None:
    starts = [{"step": 0}, {"step": 6}, {"step": 3}, {"step": 10}]
    assert list_trained(starts, 0, 10) == [starts[0], starts[2]]
    assert list_trained(starts, 3, 10) == [starts[2]]
