"""What happens to a run that is stopped from outside: real signals to real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import kill_and_resume
import pytest
from conftest import ROOT, start_torchrun, torchrun
from runs import SMALL, newest, without_times

from backbones.interrupt import EXIT_CODE, catch_interrupts


@pytest.fixture
def listening() -> Iterator[None]:
    """SIGINT does what it does in the foreground, wherever these tests run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_the_first_signal_is_a_request_and_the_second_acts_as_always() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), catch_interrupts() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        os.kill(os.getpid(), signal.SIGINT)
    with catch_interrupts() as interrupted:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupted()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.usefixtures("listening")
def test_a_signal_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with catch_interrupts() as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupted()


def test_under_torchrun_every_signal_is_the_same_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with catch_interrupts() as interrupted:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
    assert interrupted()


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while newest(run_dir) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert newest(run_dir) >= step and process.poll() is None


RUN = [ROOT / "train.py", *SMALL.split(), *["--steps", "60", "--save-every", "5", "--eval-every", "30", "--run-dir"]]


def test_an_interrupted_process_saves_says_how_to_go_on_and_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the number of threads decides how sums are rounded
    process = subprocess.Popen(
        [sys.executable, *RUN, "run"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for_step(tmp_path / "run", 5, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == EXIT_CODE == 75
    step = newest(tmp_path / "run")
    hint = "go on by --run-dir run --resume"
    assert said == f"interrupted; step {step} of 60 is saved in run/checkpoints; {hint}\n" and 5 <= step < 60
    assert not (tmp_path / "run" / "result.json").exists()
    command = [sys.executable, ROOT / "train.py", *hint.split()[3:]]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert f"goes on from step {step}\n" in done.stdout
    subprocess.run([sys.executable, *RUN, "straight"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert without_times(tmp_path / "run") == without_times(tmp_path / "straight")


def test_torchrun_saves_when_it_is_told_to_stop_and_restarts_what_was_killed(tmp_path: Path) -> None:
    """Two processes, and again as one piece, to compare."""
    run = [RUN[0], "--resume", "auto", *RUN[1:]]
    process = start_torchrun(2, *run, "run", cwd=tmp_path)
    wait_for_step(tmp_path / "run", 5, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    stopped_at = newest(tmp_path / "run")
    assert f"interrupted; step {stopped_at} of 60 is saved in run/checkpoints" in said and process.returncode != 0

    process = start_torchrun(2, "--max-restarts=2", *run, "run", cwd=tmp_path)
    wait_for_step(tmp_path / "run", stopped_at + 5, process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    said, _ = process.communicate()
    assert process.returncode == 0 and said.count("goes on from step") == 2, said
    assert torchrun(2, *run, "straight", cwd=tmp_path).returncode == 0
    assert without_times(tmp_path / "run") == without_times(tmp_path / "straight")


def test_killed_at_random_moments(capsys: pytest.CaptureFixture[str]) -> None:
    """A handful; `python tests/kill_and_resume.py --kills 50` takes ten minutes."""
    kill_and_resume.main(kills=3, steps=60)
    assert "killed 3 times" in capsys.readouterr().out
