"""`backbones checkpoint`, on a real run."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.processes import run as run_process
from helpers.states import flip_a_bit

from backbones.commands.checkpoint import main
from backbones.run.checkpoint import read_checkpoint


def run(*args: object) -> int:
    return 1 if main([str(arg) for arg in args]) is False else 0


def test_show(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert run("show", finished) == 0
    shown = capsys.readouterr().out
    assert f"{finished}/checkpoints/4: " in shown and "steps saved: 0, 2" in shown and "(best)" in shown
    assert f"top1         {result['top1']:.6g}\n" in shown and "\nevaluated " in shown
    params = next(line for line in shown.splitlines() if line.startswith("params "))
    assert params.split() == ["params", "14", "1,971,352", "7,885,408", result["params_sha256"]]
    leaf = next(line for line in shown.splitlines() if line.startswith("params/head.weight"))
    digest = read_checkpoint(finished / "checkpoints" / "4").manifest.leaves["params/head.weight"].sha256
    assert leaf.split() == ["params/head.weight", "float32", "10,240", digest[:12], "[10,", "256]"]
    assert run("show", finished, "--checkpoint", "2") == 0
    assert f"{finished}/checkpoints/2: " in capsys.readouterr().out


def test_diff(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("diff", finished, finished / "checkpoints" / "4") == 0
    assert capsys.readouterr().out.endswith(" leaves differ\n")
    assert run("diff", finished / "checkpoints" / "2", finished) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "step 2 and 4" in [" ".join(line.split()) for line in lines] and not any("key " in line for line in lines)
    two, four = (read_checkpoint(finished / "checkpoints" / step).arrays["params/whiten.bias"] for step in "24")
    bias = next(line for line in lines if line.startswith("params/whiten.bias "))
    assert f"by at most {abs(four.astype(float) - two).max():.3g}" in bias and "100.00% of the elements" in bias


def test_verify(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", finished) == 0
    assert [line.split()[1:3] for line in capsys.readouterr().out.splitlines()] == [["is", "intact:"]] * 3
    shutil.copytree(finished, tmp_path / "copy")
    flip_a_bit(tmp_path / "copy" / "checkpoints" / "2" / "state" / "params" / "head.weight" / "0.0")
    assert run("verify", tmp_path / "copy") == 1
    assert "checkpoints/2 is corrupt: state/params/head.weight/0.0: " in capsys.readouterr().out
    assert run("verify", tmp_path / "copy" / "checkpoints" / "4") == 0


@pytest.mark.slow
def test_a_users_mistake_is_one_message(tmp_path: Path) -> None:
    done = run_process(["-m", "backbones", "checkpoint", "show", tmp_path], cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: there is no checkpoint in {tmp_path}/checkpoints; name a run that has one")
