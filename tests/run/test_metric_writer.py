import json
import math
import os
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import backbones.distributed as distributed
from backbones.run.metric_lines import plot_curves, read_metrics
from backbones.run.metric_writer import MetricWriter

TRAIN = {"loss": 2.0, "accuracy": 0.25, "images_per_second": 100.0}
TEST = {"loss": 1.5, "top1": 0.5, "top5": 0.9}


def write_some(run_dir: Path, *, start_step: int = 0, num_steps: int = 6, offset: float = 0.0) -> None:
    writer = MetricWriter(run_dir, start_step=start_step, num_steps=num_steps, log_every=1)
    for step in range(start_step + 1, num_steps + 1):
        writer.step_done()
        writer.write("train", step, {**TRAIN, "loss": step + offset})
        if step % 3 == 0:
            writer.write("test", step, TEST)
    writer.close()


def test_lines_are_json_with_their_step(tmp_path: Path) -> None:
    write_some(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert 0 < lines[2].pop("seconds") <= lines[3].pop("seconds") < 60
    assert lines[3] == {"step": 3, "split": "test", **TEST}


def test_seconds_are_those_of_all_processes_of_the_run(tmp_path: Path) -> None:
    write_some(tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = [{**line, "seconds": 1000.0 * line["step"]} for line in read_metrics(tmp_path)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_some(tmp_path, start_step=4)
    seconds = {line["step"]: line["seconds"] for line in read_metrics(tmp_path)}
    assert seconds[4] == 4000 and 4000 < seconds[5] <= seconds[6] < 4060


def test_a_resumed_run_drops_the_lines_after_its_checkpoint(tmp_path: Path) -> None:
    write_some(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "spl')  # the process was killed here
    write_some(tmp_path, start_step=4, offset=0.5)
    losses = [line["loss"] for line in read_metrics(tmp_path) if line["split"] == "train"]
    assert losses == [1, 2, 3, 4, 5.5, 6.5]


def test_a_run_that_goes_back_drops_the_lines_that_it_writes_again(tmp_path: Path) -> None:
    """In the files and in TensorBoard; the time goes on."""
    writer = MetricWriter(tmp_path, start_step=0, num_steps=6, log_every=1)
    for step in range(1, 6):
        writer.write("train", step, {**TRAIN, "loss": step})
    before = read_metrics(tmp_path)[-1]["seconds"]
    writer.go_back(3)
    for step in range(4, 7):
        writer.write("train", step, {**TRAIN, "loss": step + 0.5})
    writer.close()
    lines = read_metrics(tmp_path)
    assert [line["loss"] for line in lines] == [1, 2, 3, 4.5, 5.5, 6.5]
    assert lines[2]["seconds"] < before < lines[3]["seconds"]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("train/loss")] == [1, 2, 3, 4.5, 5.5, 6.5]


def test_tensorboard_shows_the_same(tmp_path: Path) -> None:
    write_some(tmp_path)
    write_some(tmp_path, start_step=4, offset=0.5)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.5), (6, 6.5),
    ]  # fmt: skip
    assert "test/top1" in events.Tags()["scalars"]


def test_not_a_number_is_null_and_still_drawn(tmp_path: Path) -> None:
    writer = MetricWriter(tmp_path, start_step=0, num_steps=2, log_every=1)
    writer.write("train", 1, {**TRAIN, "loss": math.nan})
    writer.write("train", 2, TRAIN)
    writer.write("test", 2, TEST)
    writer.close()
    assert read_metrics(tmp_path)[0]["loss"] is None
    (tmp_path / "$a_$b").mkdir()  # no formula
    shutil.copy(tmp_path / "metrics.jsonl", tmp_path / "$a_$b")
    plot_curves(tmp_path / "$a_$b")
    plot_curves(tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_piped_output_is_lines_without_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_some(tmp_path)
    out, err = capsys.readouterr()
    assert "step 3/6  test: loss 1.5000  top-1 50.00%  top-5 90.00%" in out.splitlines()
    assert any(
        line.startswith("step 1/6  train: loss 1.0000  accuracy 25.0%  100 images/s") for line in out.splitlines()
    )
    assert "\r" not in out + err and err == ""


def test_a_full_disk_below_stdout_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = MetricWriter(tmp_path, start_step=0, num_steps=1)
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        writer.print("a line")
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # there is space again
    writer.close()


def test_time_left_does_not_count_the_time_that_compiling_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first step takes 1,000 s, each of the others 2 s."""
    now = 0.0
    monkeypatch.setattr("backbones.run.metric_writer.time.perf_counter", lambda: now)
    monkeypatch.setattr("backbones.run.metric_writer.SECONDS_BETWEEN_LINES", 0.0)
    writer = MetricWriter(tmp_path, start_step=0, num_steps=100)
    for step in range(1, 21):
        now += 1000.0 if step == 1 else 2.0
        writer.write("train", step, TRAIN)
    writer.go_back(19)
    now += 4.0
    writer.write("train", 20, TRAIN)
    writer.close()
    left = [line.split()[-2] for line in capsys.readouterr().out.splitlines()]
    assert (left[0], left[10], left[19], left[20]) == ("27:30:00", "02:58", "02:40", "05:20")


def test_other_ranks_are_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    write_some(tmp_path)
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")


def test_lines_that_are_damaged_or_missing_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_some(tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    bad = [
        b"\xff\n",
        b"[]\n",
        b"{}\n",
        b'{"step": 2, "split": "trajn"}\n',
        b'{"step": 2, "split": "test", "loss": "x"}\n',
    ]
    path.write_bytes(b"".join([*bad, *lines]))
    assert len(read_metrics(tmp_path)) == len(lines)
    assert capsys.readouterr().err == f"warning: {path}: 5 damaged lines are left out\n"
    path.write_bytes(b"".join(lines[:2]))
    write_some(tmp_path, start_step=4)
    assert f"warning: {path} has no lines of steps 3 to 4; go on without them\n" in capsys.readouterr().err
    path.unlink()
    write_some(tmp_path, start_step=4)
    assert "has no lines of steps 1 to 4" in capsys.readouterr().err
