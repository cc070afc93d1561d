import dataclasses
import itertools
import json
import math
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from helpers.runs import ROOT, SMALL

import backbones.distributed as distributed
import backbones.machine as machine
import backbones.run.trackers as trackers
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.run.loop import Diverged
from backbones.run.metric_lines import TIMES, read_metrics
from backbones.run.metric_writer import MetricWriter
from backbones.run.run import run
from backbones.run.trackers import Tracker, Trackers


class Recorder:
    """A tracker that records its calls, and fails in the first of them."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.calls: list[tuple[Any, ...]] = []

    def start(self, run_name: str, config: dict[str, Any], resume_id: str | None) -> Tracker:
        self.record("start", run_name, config["optim.lr"], resume_id)
        return Tracker("7", lambda *args: self.record("log", *args), lambda error: self.record("finish", error))

    def record(self, *call: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no route to host\nand a long story")
        self.calls.append(call)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """What `--log-to trackio` is in this test."""
    recorder = Recorder()
    monkeypatch.setitem(trackers.TRACKERS, "trackio", recorder.start)
    monkeypatch.setitem(sys.modules, "trackio", sys)
    return recorder


def write_some(run_dir: Path, experiment: Experiment, *, start_step: int = 0) -> None:
    """Three lines of training and one of test, to a writer and its trackers."""
    with Trackers(["trackio"]) as every:
        every.start(run_dir, experiment)
        writer = MetricWriter(run_dir, start_step=start_step, num_steps=3, log_every=1, trackers=every)
        for step in range(start_step + 1, 4):
            writer.write("train", step, {"loss": 1.0 / step})
        writer.write("test", 3, {"top1": 0.5})
        writer.close()


def named(line: dict[str, Any]) -> dict[str, float]:
    """A line of `metrics.jsonl` as trackers get it."""
    return {f"{line['split']}/{name}": value for name, value in line.items() if name not in ("step", "split")}


def test_trackers_get_every_line_and_a_resumed_run_continues_theirs(
    experiment: Experiment, recorder: Recorder, tmp_path: Path
) -> None:
    write_some(tmp_path, experiment)
    lr = experiment.optim.values["lr"]
    lines = [("log", line["step"], named(line)) for line in read_metrics(tmp_path)]
    assert recorder.calls == [("start", tmp_path.name, lr, None), *lines, ("finish", None)]
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"trackio": "7"}
    recorder.calls.clear()
    write_some(tmp_path, experiment, start_step=2)
    lines = [("log", line["step"], named(line)) for line in read_metrics(tmp_path)]
    assert recorder.calls == [("start", tmp_path.name, lr, "7"), *lines, ("finish", None)]


def test_what_fails_is_sent_later_with_one_warning(
    experiment: Experiment, recorder: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder.failures = 1  # in `start`
    write_some(tmp_path, experiment)
    assert [call[0] for call in recorder.calls] == ["start", *["log"] * 4, "finish"]
    reason = "no route to host; the run goes on, and metrics are kept until they can be sent"
    assert capsys.readouterr().err == f"warning: --log-to trackio: {reason}\n"


def test_a_tracker_that_fails_or_hangs_costs_the_run_nothing(
    experiment: Experiment,
    recorder: Recorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorder.failures = 999
    write_some(tmp_path, experiment)
    lost = "warning: --log-to trackio: some metrics were not sent before the end of the run\n"
    assert recorder.calls == [] and capsys.readouterr().err.endswith(lost)

    monkeypatch.setitem(trackers.TRACKERS, "trackio", lambda *args: None)  # it lacks a `return`
    write_some(tmp_path, experiment)
    assert "--log-to trackio: it gives a NoneType; wanted a Tracker; the run goes on" in capsys.readouterr().err

    hang = threading.Event()
    monkeypatch.setattr(trackers, "WAIT_AT_THE_END", 0.1)
    monkeypatch.setitem(trackers.TRACKERS, "trackio", lambda *args: hang.wait())
    start = time.monotonic()
    write_some(tmp_path, experiment)
    assert time.monotonic() - start < 10 and capsys.readouterr().err == lost
    hang.set()


def test_the_error_that_ends_a_run_is_told(experiment: Experiment, recorder: Recorder, tmp_path: Path) -> None:
    error = Diverged("at step 1")
    with pytest.raises(Diverged), Trackers(["trackio"]) as every:
        every.start(tmp_path, experiment)
        raise error
    assert recorder.calls[-1] == ("finish", error)


def test_other_ranks_send_nothing(
    experiment: Experiment, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    write_some(tmp_path, experiment)
    assert recorder.calls == [] and list(tmp_path.iterdir()) == []


def test_a_finished_run_sends_its_lines_to_a_new_tracker(
    experiment: Experiment, recorder: Recorder, tmp_path: Path
) -> None:
    experiment = dataclasses.replace(experiment, steps=4)
    result = run(experiment, run_dir=tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert run(experiment, run_dir=tmp_path, resume="latest", log_to=["trackio"]) == result
    lines = [("log", line["step"], named(line)) for line in read_metrics(tmp_path)]
    _, *sent, last, end = recorder.calls
    assert sent == lines and last[:2] == ("log", 4) and last[2]["result/top1"] == result["top1"]
    assert end == ("finish", None) and (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_missing_package_or_tracker_is_told_before_anything_is_written(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"--log-to wandb: .* pip install -e '\.\[wandb\]'"):
        run(experiment, log_to=["wandb"])
    with pytest.raises(InputError, match="unknown tracker 'wandbb'; did you mean wandb"):
        run(experiment, log_to=["wandbb"])
    with pytest.raises(InputError, match="cannot import mine:tracker: there is no module 'mine'"):
        run(experiment, log_to=["mine:tracker"])
    assert list(tmp_path.iterdir()) == []


def check_same(sent: dict[tuple[str, int], list[float]], run_dir: Path) -> None:
    """Each value of `metrics.jsonl` was sent once, and of `result.json` each number; times are those of one attempt."""
    lines = read_metrics(run_dir)
    wanted = {(name, line["step"]): value for line in lines for name, value in named(line).items()}
    result = json.loads((run_dir / "result.json").read_text())
    numbers = {name: value for name, value in result.items() if isinstance(value, int | float)}
    wanted |= {(f"result/{name}", result["steps"]): value for name, value in numbers.items()}
    assert sent.keys() == wanted.keys() and "result/top1" in {name for name, _ in sent}
    for (name, step), values in sent.items():
        assert len(values) == 1, (name, step, values)
        if name.partition("/")[2] not in (*TIMES, "peak_memory"):
            value = wanted[name, step]
            assert math.isnan(values[0]) if value is None else values[0] == value, (name, step)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trackio", "mlflow"])
def test_real_trackers_have_the_lines_of_the_run(
    name: str, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run whose last steps are done twice, and of no other run; by their own API, without a network."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # is read once in a process
    peaks = itertools.count(10**9)
    monkeypatch.setattr(machine, "peak_memory", lambda device: next(peaks))  # else it may be unknown in the second run
    package = pytest.importorskip(name)
    small = experiment.model.replace(depth=1)
    experiment = dataclasses.replace(experiment, model=small, batch_size=16, accumulate=2, steps=6, save_every=3)
    run_dir = tmp_path / "a run"
    run(experiment, run_dir=run_dir, log_to=[name])
    run(experiment, run_dir=run_dir, resume=3, log_to=[name])
    run_id = json.loads((run_dir / "trackers.json").read_text())[name]
    sent: dict[tuple[str, int], list[float]] = {}
    if name == "mlflow":
        client = package.MlflowClient()
        (only,) = client.search_runs([client.get_experiment_by_name("backbones").experiment_id])
        assert (only.info.run_id, only.info.run_name, only.info.status) == (run_id, "a run", "FINISHED")
        assert only.data.params["batch_size"] == "16" and only.data.params["optim"] == "adam"
        for metric in only.data.metrics:
            for point in client.get_metric_history(run_id, metric):
                sent.setdefault((metric, point.step), []).append(point.value)
    else:
        (only,) = package.Api().runs("backbones")
        assert only.name == run_id and run_id.startswith("a run-") and only.config["batch_size"] == 16
        for line in package.sqlite_storage.SQLiteStorage.get_logs("backbones", run_id):
            for metric in line.keys() - {"step", "timestamp"}:
                sent.setdefault((metric, line["step"]), []).append(line[metric])
    check_same(sent, run_dir)


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    command = [sys.executable, ROOT / "train.py", *SMALL.split(), "--steps", "4", "--log-every", "2"]
    environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    command += ["--run-dir", "a run", "--log-to", "wandb"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run_id = json.loads((tmp_path / "a run" / "trackers.json").read_text())["wandb"]
    (file,) = (tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb")
    sent: dict[tuple[str, int], list[float]] = {}
    for data in read_leveldb_log(file.read_bytes()):
        history = Record.FromString(data).history
        for item in history.item:
            name = item.nested_key[0] if item.nested_key else item.key
            if not name.startswith("_"):
                sent.setdefault((name, history.step.num), []).append(json.loads(item.value_json))
    check_same(sent, tmp_path / "a run")


def read_leveldb_log(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, which wandb writes and has no reader for in Python."""
    position, record = 7, b""  # after the header of the file, in its first block of 32 KiB
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
        size, kind = struct.unpack_from("<HB", data, position + 4)
        record += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # complete, or the last part
            yield record
            record = b""


def test_steps_that_are_repeated_are_sent_once() -> None:
    sent: list[tuple[int, dict[str, float]]] = []
    log = trackers._without_known(lambda *line: sent.append(line), lambda name: 1 if name == "train/loss" else -1)
    for step in (1, 2, 3, 2, 3, 4):  # as after --rewind
        log(step, {"train/loss": 1.0})
    log(1, {"test/loss": 2.0})
    assert sent == [
        (2, {"train/loss": 1.0}),
        (3, {"train/loss": 1.0}),
        (4, {"train/loss": 1.0}),
        (1, {"test/loss": 2.0}),
    ]


@pytest.mark.slow
def test_a_start_of_mlflow_that_fails_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(mlflow.MlflowClient, "log_batch", mock.Mock(side_effect=ConnectionError))
        trackers.start_mlflow("a run", {"lr": 0.1}, None)
    trackers.start_mlflow("a run", {"lr": 0.1}, None).finish(None)
    client = mlflow.MlflowClient()
    assert len(client.search_runs([client.get_experiment_by_name("backbones").experiment_id])) == 1
