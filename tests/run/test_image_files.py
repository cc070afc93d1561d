"""Runs on image files: the same bits from every source, with any number of workers, killed or not."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import Process, run as run_process, run_ranks
from helpers.runs import ROOT, SMALL, newest, without_times
from helpers.trees import in_order, write_folder, write_parquet, write_tar

from backbones.component import use
from backbones.data import DATASETS
from backbones.experiment import Experiment
from backbones.run.run import run
from experiments.digits import digits_vit_tiny

OPTIONS = ["--data.image-size", "12", "--data.crop", "random", "--model", "vit-tiny", "--model.patch-size", "4"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def small(name: str, root: Path, **options: Any) -> Experiment:
    data = use(DATASETS[name], root=str(root), **{"image_size": 12, "crop": "random", **options})
    model = digits_vit_tiny.model.replace(patch_size=4, width=16, depth=1, heads=2, mlp_width=16)
    rest = {"steps": 7, "batch_size": 10, "eval_every": 7, "save_every": 7, "log_every": 1}
    return dataclasses.replace(digits_vit_tiny, data=data, model=model, **rest)


def test_every_way_to_the_same_images_ends_in_the_same_bits(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "my photos", size=(20, 16))
    ways = {
        "folder": small("image-folder", folder),
        "tar": small("image-tar", write_tar(folder, tmp_path / "a.tar")),
        "parquet": small("parquet", write_parquet(folder, tmp_path / "parquet")),
        "one worker": small("image-folder", folder, workers=1),
        "three workers": small("image-folder", folder, workers=3),
        "cache": small("image-folder", folder, cache=str(tmp_path / "kept")),
        "cache and workers": small("image-folder", folder, cache=str(tmp_path / "kept"), workers=2),
    }
    results = {name: run(each, run_dir=tmp_path / name) for name, each in ways.items()}
    assert len({result["params_sha256"] for result in results.values()}) == 1, results
    assert len({json.dumps(without_times(tmp_path / name)) for name in ways}) == 1
    other = dataclasses.replace(ways["folder"], seed=1)
    assert run(other, run_dir=tmp_path / "other")["params_sha256"] != results["folder"]["params_sha256"]


def test_bad_files_are_listed_in_the_run_folder(tmp_path: Path) -> None:
    folder, clean = write_folder(tmp_path / "photos"), write_folder(tmp_path / "clean")
    bad = in_order(folder / "train")[4]
    bad.write_bytes(b"")
    in_order(clean / "train")[4].unlink()
    result = run(small("image-folder", folder, on_error="skip"), run_dir=tmp_path / "run")
    assert (tmp_path / "run" / "bad_files.txt").read_text() == f"{bad}: it is empty\n"
    assert result["params_sha256"] == run(small("image-folder", clean), run_dir=tmp_path / "b")["params_sha256"]
    assert not (tmp_path / "b" / "bad_files.txt").exists()


def test_a_run_that_goes_on_with_other_images_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "photos")
    experiment = small("image-folder", folder)
    run(experiment, run_dir=tmp_path / "run")
    longer = dataclasses.replace(experiment, steps=8)
    run(longer, run_dir=tmp_path / "run", resume="latest")
    assert "the images or labels" not in capsys.readouterr().err
    in_order(folder / "train")[4].unlink()
    run(dataclasses.replace(experiment, steps=9), run_dir=tmp_path / "run", resume="latest")
    assert "warning: the images or labels have changed since the last start" in capsys.readouterr().err
    for name, changed in (("branch", False), ("other", True)):
        run(dataclasses.replace(experiment, steps=10), run_dir=tmp_path / name, resume=tmp_path / "run")
        assert ("the images or labels have changed" in capsys.readouterr().err) == changed
        in_order(folder / "train")[4].unlink()
    (tmp_path / "run" / "provenance.json").write_text("[{")
    run(dataclasses.replace(experiment, steps=11), run_dir=tmp_path / "third", resume=tmp_path / "run")


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_ends_as_the_whole_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", size=(20, 16))
    root = write_tar(folder, tmp_path / "a.tar")
    command = [ROOT / "train.py", "--data", "image-tar", "--data.root", root, *OPTIONS, *SMALL.split()]
    command += ["--steps", "40", "--save-every", "2", "--batch-size", "10", "--eval-every", "40", "--data.workers", "2"]
    process = Process([*command, "--run-dir", "killed"], cwd=tmp_path)
    deadline = time.monotonic() + 200
    while newest(tmp_path / "killed") < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert 4 <= newest(tmp_path / "killed") < 40
    for rest in (
        ["--run-dir", "killed", "--resume", "auto"],
        ["--run-dir", "whole", "--save-every", "40", "--data.workers", "0"],
    ):
        done = run_process([*command, *rest], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("killed", "whole")]
    assert results[0]["params_sha256"] == results[1]["params_sha256"]


@pytest.mark.slow
def test_ranks_share_the_images_and_the_bad_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", size=(20, 16))
    in_order(folder / "train")[4].write_bytes(b"")
    args = [
        "--data",
        "image-folder",
        "--data.root",
        folder,
        *OPTIONS,
        *SMALL.split(),
        "--steps",
        "6",
        "--log-every",
        "1",
    ]
    args += ["--batch-size", "12", "--eval-every", "6", "--save-every", "6", "--data.on-error", "skip"]
    args += ["--data.workers", "1", "--model.dropout", "0"]
    losses = []
    for number in (1, 2):
        done = run_ranks(number, ROOT / "train.py", *args, "--run-dir", str(number), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        losses.append([line["loss"] for line in without_times(tmp_path / str(number))])
        assert (tmp_path / str(number) / "bad_files.txt").read_text().count("\n") == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
