import dataclasses
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import optree
import pytest
import torch

import train
from backbones.datasets import digits
from backbones.errors import InputError
from experiments import Experiment
from experiments.provenance import compare_runs, read_starts, record_start


@pytest.fixture
def short(experiment: Experiment) -> Experiment:
    return dataclasses.replace(experiment, steps=4, eval_every=4, save_every=2)


def test_what_a_run_was_made_with(short: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--run-dir", "a folder"])
    train.main(short, run_dir=tmp_path)
    train.main(dataclasses.replace(short, steps=6), run_dir=tmp_path, resume="latest")
    first, second = read_starts(tmp_path)
    assert (first["step"], first["changes"]) == (0, {})
    assert (second["step"], second["changes"]) == (4, {"steps": "4 -> 6"})
    assert first["command"] == "train.py --run-dir 'a folder'" and first["seed"] == short.seed
    assert first["packages"]["torch"] == version("torch") and first["packages"]["optree"] == optree.__version__
    assert first["num_threads"] == torch.get_num_threads() and first["num_processes"] == 1 and first["device"] == "cpu"
    assert first["python"] == ".".join(map(str, sys.version_info[:3]))
    assert first["data_sha256"] == second["data_sha256"] and len(first["data_sha256"]) == 64


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
    monkeypatch.setattr("experiments.provenance.ROOT", tmp_path / "repo")
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


def test_a_run_is_reproduced_or_not(short: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    result = train.main(short, run_dir=run)
    with pytest.raises(SystemExit) as exit:
        train.run(["--reproduce", str(run)])
    shown = capsys.readouterr().out
    assert exit.value.code == 0 and "the parameters are equal to the last bit\n" in shown
    assert shown.count(f"params_sha256 {result['params_sha256']}\n") == 2 and "other circumstances" not in shown

    starts = read_starts(run)
    starts[-1]["packages"]["torch"] = "1.0"
    (run / "provenance.json").write_text(json.dumps(starts))
    with pytest.raises(SystemExit) as exit:
        train.run(["--reproduce", str(run), "--run-dir", str(tmp_path / "other"), "--optim.lr", "0.002"])
    lines = capsys.readouterr().out.splitlines()
    assert exit.value.code == 1 and "the parameters are not equal" in lines
    assert f"other circumstances: torch 1.0 -> {version('torch')}" in lines
    assert any(line.startswith("the first metric that differs: step 2, train: ") for line in lines)
    assert "other settings: optim.lr: 0.001 -> 0.002" in lines


def test_only_a_finished_run_is_reproduced(short: Experiment, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(SystemExit, match="there is no run in"):
        train.run(["--reproduce", str(run)])
    train.main(short, run_dir=run)
    (run / "result.json").unlink()
    with pytest.raises(SystemExit, match=r"is not finished; --run-dir .* --resume auto goes on"):
        train.run(["--reproduce", str(run)])


def test_a_run_whose_settings_were_changed_says_so(short: Experiment, tmp_path: Path) -> None:
    train.main(short, run_dir=tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    train.main(dataclasses.replace(short, label_smoothing=0.1), run_dir=tmp_path / "one", resume="2")
    equal, lines = compare_runs(tmp_path / "one", tmp_path / "other")
    assert not equal
    assert f"{tmp_path / 'one'} went on from step 2 with other settings: label_smoothing: 0.0 -> 0.1" in lines


def test_damaged_history(tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text("[{")
    with pytest.raises(InputError, match=r"provenance\.json is damaged .*put it away"):
        read_starts(tmp_path)
