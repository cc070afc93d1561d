import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
from helpers.poison import BAD, POISONED

from backbones import commands
from backbones.commands.audit import audit
from backbones.errors import InputError
from backbones.run.checkpoint import read_checkpoint
from backbones.run.checkpoint.folder import delete_checkpoint, write_checkpoint
from backbones.run.run import run

NAN = POISONED.augment.replace(pixel=math.nan)

AUDITED = dataclasses.replace(POISONED, rewind=2, ema=0.9, accumulate=2, precision="bfloat16")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went back; not to be changed."""
    path = tmp_path_factory.mktemp("audited") / "run"
    run(AUDITED, run_dir=path)
    return path


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_good_run(audited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(audited)
    assert audit(audited) and audit(audited, "20:60")  # with steps that are passed over, and an average
    assert content(audited) == before
    newest, longer = [line for line in capsys.readouterr().out.splitlines() if line.startswith("OK: all ")]
    assert f"leaves are equal: steps 41 to 60, done again from {audited}/checkpoints/40, compared with" in newest
    assert "leaves are equal: steps 21 to 60" in longer


def test_a_run_that_skipped_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(dataclasses.replace(POISONED, nonfinite="skip", augment=NAN), run_dir=tmp_path)
    assert audit(tmp_path, "40:60")
    assert f"step {BAD}/60  skipped" in capsys.readouterr().out


def test_a_leaf_that_was_changed(audited: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and by how much it differs; so is what else is not as it was."""
    path = tmp_path / "run"
    shutil.copytree(audited, path)
    saved = read_checkpoint(path / "checkpoints" / "60")
    bias = saved.arrays["params/2.bias"].copy()
    bias[3] += 0.25
    delete_checkpoint(saved.path)
    write_checkpoint(saved.path, {**saved.arrays, "params/2.bias": bias}, saved.manifest)
    (start,) = json.loads((path / "provenance.json").read_text())
    start["packages"]["torch"] = "1.0"
    later = {**start, "step": 50, "changes": {"label_smoothing": "0.0 -> 0.1"}, "device": "another"}
    early = {**start, "precision": "none"}  # which trained up to step 30
    (path / "provenance.json").write_text(json.dumps([early, {**start, "step": 30}, later]))
    monkeypatch.setattr(sys, "argv", ["backbones", "audit", str(path), "40:60"])
    with pytest.raises(SystemExit) as exit:
        commands.main()
    assert exit.value.code == 1
    verdict, leaf, *others = capsys.readouterr().out.splitlines()
    assert verdict.startswith("1 of ") and " leaves differ: steps 41 to 60, done again from " in verdict
    assert leaf.startswith("params/2.bias  10.00% of the elements, by at most 0.25; relative norm ")
    assert others[0] == "the run was resumed from step 50 with other settings: label_smoothing: 0.0 -> 0.1"
    assert [line.partition(" -> ")[0] for line in others[1:]] == [
        "environment changed after step 50: device another",
        "environment changed after step 50: torch 1.0",
    ]


def test_a_run_without_its_history(audited: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "run"
    shutil.copytree(audited, path)
    (path / "provenance.json").unlink()
    assert audit(path, "40:60")
    assert "environment changed" not in capsys.readouterr().out


def test_it_computes_in_as_many_threads_as_the_run(audited: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    path = tmp_path / "run"
    shutil.copytree(audited, path)
    (start,) = json.loads((path / "provenance.json").read_text())
    (path / "provenance.json").write_text(json.dumps([{**start, "num_threads": 3}]))
    monkeypatch.setattr("backbones.machine.num_cores", lambda: 8)
    audit(path, "40:60")
    assert "num_threads" not in capsys.readouterr().out


def test_mistakes_are_one_message(audited: Path, tmp_path: Path) -> None:
    for steps, message in (
        ("20:50", r"there is no checkpoint of step 50; .*checkpoints has those of the steps 0, 20, 40, 60"),
        ("60:20", "got 60:20, wanted the steps A:B of two checkpoints with A < B; "),
        ("60", "got 60, wanted the steps A:B"),
        ("", "got , wanted the steps A:B"),
    ):
        with pytest.raises(InputError, match=message):
            audit(audited, steps)
    (tmp_path / "one" / "checkpoints" / "20").mkdir(parents=True)
    with pytest.raises(InputError, match=r"wanted two checkpoints; .*one/checkpoints has those of the steps 20"):
        audit(tmp_path / "one")
    with pytest.raises(InputError, match=r"there is no checkpoint in .*nowhere/checkpoints; name a run that has one"):
        audit(tmp_path / "nowhere")
