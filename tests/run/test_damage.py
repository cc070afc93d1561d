"""Each file of a run folder is damaged in turn; those of its checkpoints are in checkpoint/test_folder.py."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest
from helpers.runs import without_times
from helpers.states import flip_a_bit

from backbones.commands import reproduce, train
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.run.run import run
from experiments import EXPERIMENTS

pytestmark = pytest.mark.slow


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def resume(folder: Path) -> list[dict]:
    train.main(["--resume", "--steps", "4", "--run-dir", str(folder)], EXPERIMENTS)
    return without_times(folder)[-2:]


COMMANDS: dict[str, Callable[[Path], object]] = {
    "resume": resume,
    "reproduce": lambda folder: reproduce.main([str(folder)]),
}


@pytest.fixture(scope="module")
def undamaged(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, model = tmp_path_factory.mktemp("undamaged") / "run", experiment.model.replace(width=16)
    run(dataclasses.replace(experiment, model=model, steps=2, eval_every=2, save_every=2), run_dir=path)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_damage_is_named_or_does_not_matter(
    command: str, undamaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(str(path.relative_to(undamaged)) for path in undamaged.glob("*") if path.is_file())
    assert names == ["config.json", "curves.png", "metrics.jsonl", "provenance.json", "result.json"]
    shutil.copytree(undamaged, tmp_path / "copy")
    wanted = COMMANDS[command](tmp_path / "copy")
    # For time: what no file but the configuration can change.
    trained_again = mock.patch.object(reproduce, "train", lambda new: shutil.copytree(undamaged, new.run_dir))
    for name in (*names, "tensorboard"):
        for damage in (flip_a_bit, halve, Path.unlink) if ".json" in name else (halve,):
            shutil.rmtree(tmp_path / "copy")
            shutil.rmtree(tmp_path / "copy-again", ignore_errors=True)
            shutil.copytree(undamaged, tmp_path / "copy")
            file = tmp_path / "copy" / name
            damage(next(file.iterdir()) if file.is_dir() else file)
            capsys.readouterr()
            try:
                with nullcontext() if name == "config.json" else trained_again:
                    got = COMMANDS[command](tmp_path / "copy")
            except InputError as error:
                assert str(file) in str(error), (name, damage)
            else:
                printed = capsys.readouterr()
                change = re.search(r"changed since the checkpoint: (?!steps: 2 -> 4)", printed.out)
                assert got == wanted or str(file) in printed.err or change, (name, damage)


def test_a_damaged_checkpoint_elsewhere_is_named(undamaged: Path, tmp_path: Path) -> None:
    shutil.copytree(undamaged, tmp_path / "copy")
    checkpoint = tmp_path / "copy" / "checkpoints" / "2"
    flip_a_bit(checkpoint / "manifest.json")
    with pytest.raises(InputError, match=r"checkpoints/2 is corrupt: manifest\.json: "):
        train.main(["--resume", str(checkpoint), "--run-dir", str(tmp_path / "new")], EXPERIMENTS)
    assert not (tmp_path / "new" / "config.json").exists()
