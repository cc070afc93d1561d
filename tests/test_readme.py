"""What the README shows is done here, to the letter."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision.models

import train
from backbones.checkpoint.__main__ import main as checkpoint_main
from experiments import Experiment

ROOT = Path(__file__).parent.parent


def code_after(heading: str, language: str) -> list[str]:
    """The blocks of code in one section of the README."""
    section = (ROOT / "README.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


def test_the_parts_are_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = torchvision.models.resnet50().state_dict()
    torch.save(theirs, "resnet50.pth")
    _, parts, weights = code_after("Use it", "python")
    names = {}
    exec(parts + weights, names)
    exported = names["read_state_dict"]("resnet50.safetensors")
    assert exported.keys() == theirs.keys()
    assert all(torch.equal(exported[key], leaf) for key, leaf in theirs.items())


def test_add_a_model(tmp_path: Path) -> None:
    for name in ("backbones", "experiments", "train.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (module, line), (command,) = code_after("Add a model", "python"), code_after("Add a model", "sh")
    assert len([line for line in module.splitlines() if line]) <= 10
    (tmp_path / "backbones" / "models" / "tiny.py").write_text(module)
    init = tmp_path / "backbones" / "models" / "__init__.py"
    text = init.read_text().replace("import (\n", "import (\n    tiny,\n").replace("] = {\n", "] = {\n" + line)
    init.write_text(text)
    args = [sys.executable, *command.split()[1:], "--steps", "2", "--device", "cpu"]
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tiny (0.00 M parameters" in done.stdout
    assert (tmp_path / "runs" / "digits-tiny" / "result.json").exists()


def test_write_an_optimizer(tmp_path: Path) -> None:
    (text,), (command,) = code_after("Write an optimizer", "python"), code_after("Write an optimizer", "sh")
    assert (ROOT / "experiments" / "own_transform.py").read_text().endswith("\n\n" + text)
    transform = text.partition("def cautious_trace")[2].partition("\n\n\n")[0]
    assert len([line for line in transform.splitlines() if line]) <= 10
    args = [sys.executable, *command.split()[1:], "--steps", "2", "--device", "cpu", "--run-dir", tmp_path / "run"]
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "with cautious-sgd and cosine" in done.stdout
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["optim"] == {"name": "cautious-sgd", "lr": 0.1, "decay": 0.9}


def test_a_checkpoint_reads_with_orbax_alone_and_its_weights_with_safetensors(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train.main(dataclasses.replace(experiment, steps=2))
    with pytest.raises(SystemExit, match="0"):
        checkpoint_main(["export", "runs/digits-vit-tiny"])
    (code,) = code_after("Checkpoints", "python")
    assert len([line for line in code.splitlines() if line]) == 5
    capsys.readouterr()
    exec(code.replace("checkpoints/1000", "checkpoints/2"), {})
    assert capsys.readouterr().out == "True\n"
