import dataclasses
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from backbones.commands.reproduce import compare_runs, main, starts_of
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.run.provenance import read_starts
from backbones.run.run import run


@pytest.fixture
def short(experiment: Experiment) -> Experiment:
    return dataclasses.replace(experiment, steps=4, eval_every=4, save_every=2)


@pytest.mark.slow
def test_a_run_is_reproduced_or_not(short: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    result = run(short, run_dir=path)
    assert main([str(path)])
    shown = capsys.readouterr().out
    assert "the parameters are equal to the last bit\n" in shown
    assert shown.count(f"params_sha256 {result['params_sha256']}\n") == 2 and "environment changed" not in shown

    starts = read_starts(path)
    starts[-1]["packages"]["torch"] = "1.0"
    first, starts[0]["init_sha256"] = starts[0]["init_sha256"], "of other weights"
    (path / "provenance.json").write_text(json.dumps(starts))
    assert not main([str(path), "--run-dir", str(tmp_path / "other"), "--optim.lr", "0.002"])
    lines = capsys.readouterr().out.splitlines()
    assert "the parameters are not equal" in lines
    assert f"environment changed: torch 1.0 -> {version('torch')}" in lines
    assert any(line.startswith("the first metric that differs: step 2, train: ") for line in lines)
    assert "other settings: optim.lr: 0.001 -> 0.002" in lines
    assert f"the parameters before the first step are others: init_sha256 of other weights -> {first}" in lines


def test_only_a_finished_run_is_reproduced(short: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(InputError, match="there is no run in"):
        main([str(path)])
    run(short, run_dir=path)
    (path / "result.json").unlink()
    with pytest.raises(
        InputError, match=r"is not finished, as .*result\.json is not there; --run-dir .* --resume auto"
    ):
        main([str(path)])


@pytest.mark.slow
def test_a_run_whose_settings_were_changed_says_so(short: Experiment, tmp_path: Path, capsys) -> None:
    run(short, run_dir=tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    run(dataclasses.replace(short, label_smoothing=0.1), run_dir=tmp_path / "one", resume=2)
    assert not compare_runs(tmp_path / "one", tmp_path / "other")
    changed = f"{tmp_path / 'one'} was resumed from step 2 with other settings: label_smoothing: 0.0 -> 0.1\n"
    assert changed in capsys.readouterr().out
    lines = (tmp_path / "one" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "one" / "metrics.jsonl").write_text("".join(lines[1:]))  # as in a run that branched off
    assert not compare_runs(tmp_path / "one", tmp_path / "other")
    shown = capsys.readouterr().out
    assert "the first metric that differs: step 3, train: " in shown, shown


@pytest.mark.slow
def test_a_start_that_trained_nothing_does_not_count(short: Experiment, tmp_path: Path) -> None:
    run(short, run_dir=tmp_path)
    run(dataclasses.replace(short, tta="flip"), run_dir=tmp_path, resume="latest")
    assert len(read_starts(tmp_path)) == 2 and len(starts_of(tmp_path)) == 1
    with pytest.raises(InputError, match="--show and --list train nothing"):
        main([str(tmp_path), "--show"])
