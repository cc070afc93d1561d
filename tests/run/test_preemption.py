"""What happens to a run that is asked to stop, or killed: real signals to real processes."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import kill_and_resume
from helpers.processes import run, run_ranks
from helpers.runs import ROOT, SMALL, newest, torchrun, without_times

import backbones.run.preemption as preemption
from backbones.run.preemption import EXIT_CODE, SIGNALS, handle_signals


@pytest.fixture(autouse=True)
def default_handlers() -> Iterator[None]:
    """Every signal does what it does in the foreground of a terminal, however these tests were started."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_signals_that_stop_a_run() -> None:
    assert {number.name for number in SIGNALS} == {"SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"}


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_first_signal_is_a_request_and_the_second_acts_as_usual(number: signal.Signals) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with handle_signals() as preempted:
        assert not preempted()
        signal.raise_signal(number)
        assert preempted() and [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(KeyboardInterrupt), handle_signals():
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGINT)
    with handle_signals():
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with handle_signals() as preempted:
        signal.raise_signal(signal.SIGHUP)
        assert not preempted()
        signal.raise_signal(signal.SIGTERM)
        assert preempted()


def test_under_torchrun_every_signal_is_the_same_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with handle_signals() as preempted:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
    assert preempted()


def test_a_torchrun_that_was_gone_before_training_began_asks_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "PARENT", 1 + os.getppid())
    with handle_signals() as preempted:
        assert not preempted()  # a process that torchrun did not start may be left by its shell
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        assert preempted()


AT_FILE_OPERATION = ROOT / "tests" / "helpers" / "at_file_operation.py"

OPTIONS = [*SMALL.split(), "--steps=40", "--save-every=5", "--eval-every=20", "--resume=auto", "--run-dir"]


@pytest.mark.slow
def test_a_preempted_process_saves_and_its_message_tells_how_to_resume(tmp_path: Path) -> None:
    commands = {"os.rename run/checkpoints/5.tmp": "kill -USR1 $PPID"}
    done = run([AT_FILE_OPERATION, json.dumps(commands), *OPTIONS, "run"], cwd=tmp_path)
    step, hint = newest(tmp_path / "run"), "--run-dir run --resume"
    assert done.returncode == EXIT_CODE == 75
    assert done.stderr == f"stopped after step {step} of 40, saved in run/checkpoints; resume with {hint}\n"
    assert 5 <= step <= 11  # the save of step 10 waits for that of step 5
    assert not (tmp_path / "run" / "result.json").exists()
    done = run([ROOT / "train.py", *hint.split()], cwd=tmp_path)
    assert done.returncode == 0 and f"resumed from step {step}\n" in done.stdout, done.stderr
    assert run([ROOT / "train.py", *OPTIONS, "straight"], cwd=tmp_path).returncode == 0
    assert without_times(tmp_path / "run") == without_times(tmp_path / "straight")


@pytest.mark.slow
def test_torchrun_stops_its_processes_when_asked_and_restarts_them_when_one_is_killed(tmp_path: Path) -> None:
    """Two processes, then two that go on to the end, and two that are left alone, to compare."""
    torchrun_itself = "$(ps -o ppid= -p $PPID)"
    kill_once = f"if mkdir killed 2> /dev/null; then kill -KILL $(pgrep -P {torchrun_itself} | tail -1); fi"
    stop = f"kill -TERM {torchrun_itself}"
    commands = {"os.rename run/checkpoints/10.tmp": kill_once, "os.rename run/checkpoints/20.tmp": stop}
    done = torchrun(2, "--max-restarts=2", AT_FILE_OPERATION, json.dumps(commands), *OPTIONS, "run", cwd=tmp_path)
    step = newest(tmp_path / "run")
    assert (tmp_path / "killed").exists() and done.stdout.count("resumed from step") == 1, done.stdout + done.stderr
    assert f"stopped after step {step} of 40, saved in run/checkpoints" in done.stderr and done.returncode != 0

    done = run_ranks(2, ROOT / "train.py", *OPTIONS, "run", cwd=tmp_path)
    assert done.returncode == 0 and f"resumed from step {step}\n" in done.stdout, done.stdout + done.stderr
    assert run_ranks(2, ROOT / "train.py", *OPTIONS, "straight", cwd=tmp_path).returncode == 0
    assert without_times(tmp_path / "run") == without_times(tmp_path / "straight")


@pytest.mark.slow
def test_the_processes_of_a_torchrun_that_is_gone_save_and_stop(tmp_path: Path) -> None:
    commands = {"os.rename run/checkpoints/5.tmp": "kill -KILL $(ps -o ppid= -p $PPID)"}
    done = torchrun(1, AT_FILE_OPERATION, json.dumps(commands), *OPTIONS, "run", cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL  # its pipes stay open until its process has ended
    assert f"stopped after step {newest(tmp_path / 'run')} of 40, saved in run/checkpoints" in done.stderr


@pytest.mark.slow
def test_killed_at_random_moments(capsys: pytest.CaptureFixture[str]) -> None:
    """Once; `PYTHONPATH=.:tests python tests/helpers/kill_and_resume.py --kills 50` does it often."""
    kill_and_resume.main(kills=1, steps=25)
    assert "killed 1 times" in capsys.readouterr().out
