"""Sweeps in this process: what their members compute, and what is left of them when they are stopped."""

import csv
import dataclasses
import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from unittest import mock

import pytest
import torch
from helpers import kill_sweep
from helpers.runs import ROOT, newest, relative_error, without_times
from helpers.sweeps import RESNET, VIT, sweep_over
from PIL import Image

from backbones.errors import InputError
from backbones.run import run as run_module
from backbones.run.checkpoint import Checkpoints, list_steps, read_checkpoint
from backbones.run.checkpoint.arrays import subtree
from backbones.run.files import read_json, write_json
from backbones.run.metric_lines import read_metrics
from backbones.run.preemption import Preempted
from backbones.run.run import run
from backbones.run.sweep.axes import parse_axes
from backbones.run.sweep.jobs import Job, run_in_sequence
from backbones.run.sweep.members import Plan, find_folder, make_sweep, read_sweep, write_sweep
from backbones.run.sweep.run_sweep import run_sweep
from backbones.vmapped_step import make_vmapped_step


def hashes(folder: Path) -> dict[str, str]:
    return {path.parent.name: read_json(path)["params_sha256"] for path in folder.glob("*/result.json")}


def params(run_dir: Path) -> torch.Tensor:
    step = list_steps(run_dir / "checkpoints")[-1]
    leaves = subtree(read_checkpoint(run_dir / "checkpoints" / str(step)).arrays, "params")
    return torch.cat([leaf.flatten() for leaf in leaves.values()])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sweep of two rates, of which one diverges, in two ways. Not to be changed."""
    found = {how: tmp_path_factory.mktemp("sweep") / how for how in ("sequence", "vmap")}
    for how, folder in found.items():
        run_sweep(sweep_over(RESNET, [0.03, 1e39], [1, 2]), folder, how=how)
    return found


@pytest.fixture(scope="module")
def in_sequence(folders: dict[str, Path]) -> Path:
    return folders["sequence"]


@pytest.mark.slow
def test_vmapped_members_are_ordinary_runs(folders: dict[str, Path], tmp_path: Path) -> None:
    sweep, _ = read_sweep(folders["vmap"])
    for member in sweep.members:
        ours, theirs = (folders[how] / member.name for how in ("vmap", "sequence"))
        assert {path.name for path in ours.iterdir()} - {"log.txt"} == {path.name for path in theirs.iterdir()}
        assert relative_error(params(ours), params(theirs)) < 1e-4
        lines = [[(line["step"], line["split"]) for line in without_times(run_dir)] for run_dir in (ours, theirs)]
        assert lines[0] == lines[1]
    shutil.copytree(folders["vmap"] / sweep.members[0].name, tmp_path / "run")
    longer = dataclasses.replace(sweep.members[0].experiment, steps=14)
    assert run(longer, run_dir=tmp_path / "run", resume="auto")["steps"] == 14


@pytest.mark.slow
def test_a_member_that_cannot_be_saved_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, write = sweep_over(RESNET, [0.03], [1, 2]), Checkpoints._write
    name, other = (member.name for member in sweep.members)

    def failing_for_one(checkpoints: Checkpoints, *args: Any) -> None:
        if checkpoints.folder.parent.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(checkpoints, *args)

    monkeypatch.setattr(Checkpoints, "_write", failing_for_one)
    failures = run_sweep(sweep, tmp_path / "sweep", how="vmap")
    assert [*failures] == [name] and "No space left on device" in failures[name]
    assert [*hashes(tmp_path / "sweep")] == [other]


def test_a_member_that_does_not_fit_into_memory_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_job(job: Job, preempted: Callable[[], bool]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.") if job.name == "a" else KeyError("a bug")

    monkeypatch.setattr("backbones.run.sweep.jobs.run_job", run_job)
    failures = run_in_sequence([Job(tmp_path / name, VIT, 1) for name in ("a", "b")])
    shown = capsys.readouterr().err
    assert failures["a"] == "CUDA out of memory." and shown.count("Traceback") == 1 and "KeyError: 'a bug'" in shown


def test_members_whose_process_cannot_start(tmp_path: Path) -> None:
    sweep = sweep_over(RESNET, [0.03], [1, 2])
    names = [member.name for member in sweep.members]
    (tmp_path / "sweep").mkdir()
    for name in names:
        (tmp_path / "sweep" / name).write_text("in the way of its folder")
    failures = run_sweep(sweep, tmp_path / "sweep", how="processes")
    assert [*failures] == names and "File exists" in failures[names[0]]


def stopped_at(call: int, stop: Callable[[], object]) -> mock._patch:
    """Within the block, `stop()` is called before a call of the vmapped step."""
    calls = 0

    def make_step(experiments, dataset):
        step = make_vmapped_step(experiments, dataset)

        def counted(states, batches):
            nonlocal calls
            calls += 1
            if calls == call:
                stop()
            return step(states, batches)

        return counted

    return mock.patch("backbones.run.sweep.vmapped.make_vmapped_step", make_step)


@pytest.mark.slow
def test_a_vmapped_sweep_goes_on_from_the_latest_step_that_all_have(folders: dict[str, Path], tmp_path: Path) -> None:
    sweep, folder, straight = sweep_over(RESNET, [0.03, 1e39], [1, 2]), tmp_path / "stopped", folders["vmap"]
    with stopped_at(8, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(Preempted, match="same command"):
        run_sweep(sweep, folder, how="vmap")
    first, second = (folder / member.name / "checkpoints" for member in sweep.members[:2])
    assert list_steps(first) == list_steps(second) == [0, 3, 6, 8]
    shutil.rmtree(second / "8")
    (first / "9.tmp").mkdir()
    with stopped_at(2, lambda: 1 / 0), pytest.raises(ZeroDivisionError):
        run_sweep(sweep, folder, how="vmap")
    assert list_steps(first) == list_steps(second) == [0, 3, 6]
    assert (first / "superseded" / "8").exists()
    run_sweep(sweep, folder)  # in the way in which it was begun
    assert hashes(folder) == hashes(straight) and len(hashes(folder)) == 2
    for member in sweep.members:
        assert without_times(folder / member.name) == without_times(straight / member.name)
    for name in ("table.md", "table.csv"):
        assert (folder / name).read_text() == (straight / name).read_text()


@pytest.mark.slow
def test_halving_keeps_the_best_and_does_not_change_what_they_compute(in_sequence: Path, tmp_path: Path) -> None:
    sweep = sweep_over(RESNET, [0.03, 1e39], [1, 2], halving=2)
    assert sweep.rungs() == [4, 2, 1] and sweep.rung_ends(sweep.members[0]) == [3, 6, 12]
    run_sweep(sweep, tmp_path, how="sequence")
    names = [member.name for member in sweep.members]
    top1 = {name: held_out_lines(in_sequence / name)[1]["top1"] for name in names[:2]}  # after step 6
    best, other = sorted(top1, key=lambda name: -top1[name])
    assert hashes(tmp_path) == {best: hashes(in_sequence)[best]}
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [(row["run"], row["status"], row["steps"]) for row in rows] == [
        (best, "finished", "12"),
        (other, "stopped", "6"),
        (names[2], "diverged", "2"),
        (names[3], "diverged", "2"),
    ]
    assert f" {100 * top1[other]:.2f} | " in (tmp_path / "table.md").read_text()


def test_halving_of_members_that_all_diverge_ends_with_a_table(tmp_path: Path) -> None:
    run_sweep(sweep_over(RESNET, [1e38, 1e39], [1, 2], halving=2), tmp_path, how="sequence")
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["diverged"] * 4


def test_a_signal_in_the_last_step_of_a_member_stops_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_over(VIT, [0.1, 0.2], [0])
    plot = run_module.plot_curves

    def plot_and_kill(folder: Path) -> None:
        plot(folder)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "plot_curves", plot_and_kill)
        with pytest.raises(Preempted, match="the sweep is stopped, and its members are saved"):
            run_sweep(sweep, tmp_path, how="sequence")
    assert [(tmp_path / member.name / "result.json").exists() for member in sweep.members] == [True, False]
    run_sweep(sweep, tmp_path)
    assert len(hashes(tmp_path)) == 2


def held_out_lines(run_dir: Path) -> list[dict]:
    return [line for line in read_metrics(run_dir) if line["split"] == "test"]


@pytest.mark.slow
def test_the_table_says_what_result_json_does(in_sequence: Path) -> None:
    rows = list(csv.DictReader((in_sequence / "table.csv").read_text().splitlines()))
    finished = rows[:2]
    assert [row["status"] for row in rows] == ["finished"] * 2 + ["diverged"] * 2 and rows[2]["top1"] == "nan"
    for row in finished:
        result = read_json(in_sequence / row["run"] / "result.json")
        for name in ("top1", "top5", "loss", "steps"):
            assert float(row[name]) == result[name]
    top1 = [100 * float(row["top1"]) for row in finished]
    assert top1[0] >= top1[1]
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in (in_sequence / "table.md").read_text().splitlines()
    ]
    assert lines[0] == ["optim.lr", "top-1, %", "loss", "steps", "seeds"]
    assert lines[2][:2] == ["0.03", f"{fmean(top1):.2f} ± {stdev(top1):.2f}"] and lines[2][3:] == ["12", "2"]
    assert lines[3] == ["1e+39", "diverged", "", "2", "0 of 2: 2 diverged"]
    with Image.open(in_sequence / "sweep.png") as picture:
        assert picture.width > 300


@pytest.mark.slow
def test_the_same_again_leaves_finished_members_as_they_are(in_sequence: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(in_sequence, folder)
    first, other = hashes(folder)
    shutil.rmtree(folder / first)
    before = (folder / other / "provenance.json").read_text()
    run_sweep(sweep_over(RESNET, [0.03, 1e39], [1, 2]), folder)
    assert (folder / other / "provenance.json").read_text() == before
    assert hashes(folder) == hashes(in_sequence)


@pytest.mark.slow
def test_members_of_another_sweep_are_not_taken(in_sequence: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(in_sequence, folder)
    (folder / "sweep.json").unlink()
    smooth = dataclasses.replace(RESNET, label_smoothing=0.1)
    with pytest.raises(InputError, match=r"holds a run of other settings .*\n  label_smoothing: 0\.0 -> 0\.1\nmove it"):
        run_sweep(sweep_over(smooth, [0.03, 1e39], [1, 2]), folder)


@pytest.mark.slow
def test_a_sweep_whose_members_are_done_measures_nothing(in_sequence: Path, tmp_path: Path, monkeypatch) -> None:
    """As on a cluster, where jobs have run them one by one."""
    folder = tmp_path / "sweep"
    shutil.copytree(in_sequence, folder)
    sweep = read_sweep(folder)[0]
    write_sweep(folder, sweep, Plan())
    monkeypatch.setattr("backbones.run.sweep.run_sweep.choose_how", None)
    run_sweep(sweep, folder)
    assert (folder / "table.md").read_text() == (in_sequence / "table.md").read_text()


@pytest.mark.slow
def test_processes_are_stopped_and_go_on_and_one_that_fails_does_not_stop_the_others(
    in_sequence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    sweep = sweep_over(RESNET, [0.03], [2, 1])
    first, second = (tmp_path / member.name for member in sweep.members)

    over = threading.Event()

    def stop() -> None:
        while newest(first) < 0 and not over.wait(0.02):
            pass
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Preempted, match="the same command continues it"):
        run_sweep(sweep, tmp_path, how="processes", workers=1)
    over.set()
    thread.join()
    assert not second.exists()
    (first / "config.json").unlink(missing_ok=True)  # its checkpoints have it too
    (second / "config.json").mkdir(parents=True)  # and this one cannot be written
    assert run_sweep(sweep, tmp_path).keys() == {second.name}
    assert f"{second.name} failed: error: " in capsys.readouterr().out
    assert list(hashes(tmp_path).values()) == [hashes(in_sequence)["1-lr-0.03-seed-2"]]
    assert "| 1 of 2: 1 failed |" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_a_member_that_fails_in_sequence_does_not_stop_the_others(
    in_sequence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_over(RESNET, [0.03], [2, 1])
    first, second = (tmp_path / member.name for member in sweep.members)
    (first / "config.json").mkdir(parents=True)  # it cannot be written
    assert run_sweep(sweep, tmp_path, how="sequence").keys() == {first.name}
    assert f"{first.name} failed: " in capsys.readouterr().out
    assert hashes(tmp_path)[second.name] == hashes(in_sequence)["0-lr-0.03-seed-1"]


@pytest.mark.slow
def test_members_that_were_begun_as_separate_runs_are_not_vmapped(
    in_sequence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where one job of a cluster has run, and others have not."""
    folder = tmp_path / "sweep"
    shutil.copytree(in_sequence, folder)
    sweep = read_sweep(folder)[0]
    for plan in (Plan(), Plan("sequence")):
        write_sweep(folder, sweep, plan)
        with pytest.raises(InputError, match="begun as separate runs; continue by sequence or processes"):
            run_sweep(sweep, folder, how="vmap")
        assert read_sweep(folder)[1] == plan
    with pytest.raises(InputError, match="--workers is for processes, and the way of this sweep is sequence"):
        run_sweep(sweep, folder, workers=2)
    write_sweep(folder, sweep, Plan())
    asked: list[bool] = []

    def choose_how(*args: object, may_vmap: bool) -> str:
        asked.append(may_vmap)
        return "sequence"

    monkeypatch.setattr("backbones.run.sweep.run_sweep.choose_how", choose_how)
    shutil.rmtree(folder / sweep.members[0].name)
    run_sweep(sweep, folder)
    assert asked == [False] and hashes(folder) == hashes(in_sequence)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    sweep, other = sweep_over(VIT, [0.1], [0]), sweep_over(VIT, [0.2], [0])
    write_sweep(tmp_path, other, Plan("vmap", 3))
    assert read_sweep(tmp_path) == (other, Plan("vmap", 3)) and find_folder(other, tmp_path) == tmp_path
    with pytest.raises(InputError, match="holds another sweep; name another --sweep-dir"):
        find_folder(sweep, tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds a run"):
        find_folder(sweep, tmp_path / "run")


def test_a_sweep_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep, other = sweep_over(VIT, [0.1], [0]), sweep_over(VIT, [0.2], [0])
    assert find_folder(sweep, None) == Path("sweeps/digits-vit-tiny")
    write_sweep(Path("sweeps/digits-vit-tiny"), sweep, Plan())
    assert find_folder(other, None) == Path("sweeps/digits-vit-tiny-2")
    write_sweep(Path("sweeps/digits-vit-tiny-2"), other, Plan())
    assert find_folder(sweep, None) == Path("sweeps/digits-vit-tiny")
    assert find_folder(other, None) == Path("sweeps/digits-vit-tiny-2")
    path = Path("sweeps/digits-vit-tiny/sweep.json")
    older = read_json(path)  # of before there was an option
    del older["experiment"]["best"], older["members"][0]["experiment"]["best"]
    write_json(path, older)
    assert find_folder(sweep, None) == Path("sweeps/digits-vit-tiny")
    write_json(path, {**older, "members": "?"})
    assert find_folder(sweep, None) == Path("sweeps/digits-vit-tiny-3")
    path.write_text("{")
    assert find_folder(other, None) == Path("sweeps/digits-vit-tiny-2")


def test_members_that_cannot_be_run_are_refused_before_anything_is(tmp_path: Path) -> None:
    axes = parse_axes([["model.heads", "2", "3"]])
    members = [({"model.heads": str(n)}, dataclasses.replace(VIT, model=VIT.model.replace(heads=n))) for n in (2, 3)]
    with pytest.raises(InputError, match="1-heads-3 cannot be run: 3 attention heads do not divide a width of 16"):
        make_sweep(VIT, axes, members)
    with pytest.raises(InputError, match=r"1-lr-0.10-seed-0 would be the same run as 0-lr-0.1-seed-0"):
        sweep_over(VIT, ["0.1", "0.10"], [0])
    with pytest.raises(InputError, match="5 rungs, and the first of them would end before the first of 12 steps"):
        sweep_over(VIT, [0.1, 0.2], [*range(8)], halving=2)
    with pytest.raises(InputError, match=r"0-lr-0\.1-seed-0 cannot be run: there is no absent to start from"):
        sweep_over(dataclasses.replace(VIT, init_from="absent"), [0.1], [0])
    with pytest.raises(InputError, match="--how vmap with --halving"):
        run_sweep(sweep_over(VIT, [0.1], [0, 1], halving=2), tmp_path, how="vmap")
    other = dataclasses.replace(VIT, label_smoothing=0.1)
    members = [({"label_smoothing": "0"}, VIT), ({"label_smoothing": "0.1"}, other)]
    smoothing = make_sweep(VIT, parse_axes([["label_smoothing", "0", "0.1"]]), members)
    with pytest.raises(InputError, match="they differ in label_smoothing, which the state of a training does not hold"):
        run_sweep(smoothing, tmp_path, how="vmap")
    assert read_sweep(tmp_path)[1].how is None  # the next start may choose another


@pytest.mark.slow
def test_killed_at_a_random_moment(capsys: pytest.CaptureFixture[str]) -> None:
    """Once; `PYTHONPATH=.:tests python tests/helpers/kill_sweep.py` does it five times, in any way."""
    kill_sweep.main(kills=1, rates=2, seeds=1, steps=24)
    assert "killed 1 times" in capsys.readouterr().out
