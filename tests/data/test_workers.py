import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.processes import Process
from helpers.runs import ROOT
from helpers.trees import in_order, write_folder

from backbones.data import batches as batches_module, image_folder
from backbones.data.batches import AHEAD, Request
from backbones.data.image_files.workers import Workers
from backbones.data.source import DataInfo, Source
from backbones.errors import InputError
from backbones.types import CPU


class Reader:
    """What a worker process can be asked for."""

    def double(self, value: int) -> int:
        return 2 * value

    def fail(self, value: int) -> int:
        raise InputError(f"{value} is bad")

    def process(self, _: int) -> tuple[int, int, int, bool]:
        return os.getpid(), os.getppid(), torch.get_num_threads(), signal.getsignal(signal.SIGINT) == signal.SIG_IGN

    def die(self, _: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("number", [0, 2])
def test_methods_are_called_and_errors_come_back(number: int) -> None:
    workers = Workers({"a": Reader()}, number)
    waits = [workers.start("a", "double", i) for i in range(5)]
    assert [wait() for wait in waits] == [0, 2, 4, 6, 8]
    assert list(workers.in_order("a", "double", range(30))) == list(range(0, 60, 2))
    with pytest.raises(InputError, match=r"^7 is bad$"):
        workers.start("a", "fail", 7)()


def test_workers_are_processes_that_leave_signals_to_training() -> None:
    workers = Workers({"a": Reader()}, 1)
    process, parent, num_threads, ignores = workers.start("a", "process", 0)()
    assert process != os.getpid() and num_threads == 1 and ignores
    assert "'backbones.data'" in Path(f"/proc/{parent}/cmdline").read_text()  # imported once for all of them


def test_a_worker_that_dies_is_one_message() -> None:
    workers = Workers({"a": Reader()}, 2)
    with pytest.raises(InputError, match="a process that reads images has died"):
        workers.start("a", "die", 0)()


def test_a_death_ends_the_other_processes_of_its_pool_and_no_others() -> None:
    pools = [Workers({"a": Reader()}, 2) for _ in "12"]
    waits = [[pool.start("a", "process", i) for i in range(20)] for pool in pools]
    processes = [list(pool._pool._processes) for pool in pools if [wait() for wait in waits[pools.index(pool)]]]
    assert [len(each) for each in processes] == [2, 2]
    with pytest.raises(InputError, match="a process that reads images has died"):
        pools[0].start("a", "die", 0)()
    deadline = time.monotonic() + 300
    while any(Path(f"/proc/{process}").exists() for process in processes[0]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert pools[1].start("a", "double", 4)() == 8 and all(Path(f"/proc/{each}").exists() for each in processes[1])


def make_source(started: list[int]) -> Source:
    labels = torch.arange(100)

    def read(index: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return index[:, None, None, None].to(torch.uint8)

    def start(index: torch.Tensor, keys: torch.Tensor):
        started.append(int(index[0]))
        return lambda: read(index, keys)

    info = DataInfo((1, 1, 1), tuple(map(str, range(100))), (0.0,), (1.0,))
    return Source(info, labels, read, lambda: "", start)


def test_the_next_batches_are_read_ahead_and_no_more() -> None:
    started: list[int] = []

    def request(step: int) -> Request:
        return Request(*[torch.tensor([step])] * 3)

    batches = batches_module.read_ahead(make_source(started), request, 6, CPU)
    assert batches(0).labels.tolist() == [0] and started == [0, 1, 2]
    assert batches(1).images.flatten().tolist() == [1] and started == [0, 1, 2, 3]
    assert batches(4).labels.tolist() == [4] and started == [0, 1, 2, 3, 4, 5]  # 2 and 3 are dropped
    assert batches(5).labels.tolist() == [5] and started == [0, 1, 2, 3, 4, 5]  # nothing after the last step
    assert batches(2).labels.tolist() == [2] and started[6:] == [2, 3, 4]
    assert batches(9).labels.tolist() == [9] and started[9:] == [9]
    assert AHEAD == 2


def children(process: int) -> set[int]:
    """All processes that descend from one, by its session."""
    listed = subprocess.run(["ps", "-o", "pid=", "-s", str(process)], capture_output=True, text=True).stdout
    return {int(each) for each in listed.split()} - {process}


@pytest.fixture
def training(tmp_path: Path):
    """A training with two workers that is well under way, in a session of its own."""
    folder = write_folder(tmp_path / "photos")
    options = ["--data", "image-folder", "--data.root", folder, "--data.workers", "2", "--model", "airbench"]
    command = [ROOT / "train.py", *options, "--steps", "100000", "--batch-size", "6", "--run-dir", "run"]
    process = Process(command, cwd=tmp_path, env={"XDG_CACHE_HOME": str(tmp_path / "cache")}, new_session=True)
    deadline = time.monotonic() + 120
    log = tmp_path / "run" / "metrics.jsonl"
    while not (log.exists() and log.read_text()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    yield process
    process.kill()
    process.wait()


def exit_code(process: Process) -> int:
    """That of a process that is to end; if it does not, what its threads are doing fails the test."""
    try:
        return process.wait(300)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        process.wait()
        raise AssertionError(process.stderr) from None


def wait_until_gone(session: int) -> None:
    deadline = time.monotonic() + 300
    while children(session):
        assert time.monotonic() < deadline, children(session)
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_behind(end: signal.Signals, training: Process) -> None:
    assert len(children(training.pid)) >= 3
    (os.kill if end == signal.SIGKILL else os.killpg)(training.pid, end)  # Ctrl-C and Slurm send it to all of them
    code = exit_code(training)
    wait_until_gone(training.pid)
    said = training.stdout + training.stderr
    assert "Traceback" not in said, said
    if end != signal.SIGKILL:
        assert code == 75 and "stopped after step" in said


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run(training: Process) -> None:
    command = ["pgrep", "-s", str(training.pid), "-f", "forkserver"]
    os.kill(int(subprocess.run(command, capture_output=True, text=True).stdout.split()[-1]), signal.SIGKILL)
    assert exit_code(training) == 1
    wait_until_gone(training.pid)
    said = training.stdout + training.stderr
    assert "Traceback" not in said and said.rstrip().endswith("--resume continues the run"), said
    assert "error: a process that reads images has died" in said


WITHOUT_A_GUARD = """
from pathlib import Path

from backbones.data.image_files.decoded import one_at_a_time
from backbones.data.image_files.workers import Workers

with one_at_a_time(Path("lock")):
    Workers({}, 2).start("a", "b")()
"""


@pytest.mark.slow
def test_a_script_that_its_processes_import_ends_with_a_message(tmp_path: Path) -> None:
    """Otherwise it would wait for them, and they for the lock that it holds."""
    (tmp_path / "script.py").write_text(WITHOUT_A_GUARD)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "the script has no `if __name__" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("backbones.errors.InputError: a process that reads images has died")


def test_a_bad_file_is_named_by_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "photos")
    dataset = image_folder(root=str(folder), workers=1)
    in_order(folder / "train")[5].write_bytes(b"nothing")
    index = torch.tensor([5])
    with pytest.raises(InputError, match=r"cannot read .*photo 5.*JPG: it is not an image, or is damaged; remove"):
        dataset.train.start(index, index)()
