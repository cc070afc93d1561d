import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
import torch
from helpers.processes import run, run_ranks
from helpers.runs import ROOT, SMALL

from backbones.commands import COMMANDS, IN_PROCESSES, main
from backbones.commands.exit import run_command
from backbones.errors import InputError
from backbones.run.loop import Diverged
from backbones.run.preemption import Preempted


def exit_of(error: BaseException | None = None, value: bool | None = None) -> int | str:
    def main(args: list[str]) -> bool | None:
        if error is not None:
            raise error
        return value

    with pytest.raises(SystemExit) as exit:
        run_command(main)
    return exit.value.code


def test_exit_codes() -> None:
    assert exit_of() == exit_of(value=True) == 0 and exit_of(value=False) == 1
    assert exit_of(InputError("a b")) == exit_of(Diverged("a b")) == "error: a b"  # printed by Python, with code 1
    assert exit_of(OSError(28, "No space left on device")) == (
        "error: cannot write the files of the run: No space left on device"
    )
    assert exit_of(FileNotFoundError(2, "No such file", "x.png")) == "error: x.png: No such file"
    assert exit_of(Preempted("saved")) == 75 and exit_of(KeyboardInterrupt()) == 130


def test_memory_that_is_not_there() -> None:
    def allocate(args: list[str]) -> None:
        torch.empty(2**55, dtype=torch.uint8)

    with pytest.raises(SystemExit) as exit:
        run_command(allocate)
    assert "can't allocate memory" in str(exit.value.code)
    assert "Give fewer images at a time" in str(exit_of(torch.OutOfMemoryError("CUDA out of memory.")))


def test_a_bug_is_a_traceback() -> None:
    for error in (ZeroDivisionError("x"), OSError("not of a file or a disk")):
        with pytest.raises(type(error)):
            exit_of_bug(error)


def exit_of_bug(error: Exception) -> None:
    def main(args: list[str]) -> None:
        raise error

    run_command(main)


PROGRAM = """
import os
from backbones.commands.exit import run_command
def main(args):
    for line in range(9):
        print(line, flush={flush})
    {end}
read, write = os.pipe()
os.dup2(write, 1)
os.close(write)
os.close(read)
run_command(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("flush", "end"), [(True, ""), (False, ""), (False, "raise SystemExit(0)")])
def test_a_closed_pipe_ends_it_quietly(flush: bool, end: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(flush=flush, end=end))
    done = run([tmp_path / "program.py"], cwd=tmp_path)
    assert (done.stderr, done.returncode) == ("", 1)


@pytest.mark.slow
def test_it_is_saved_for_later_also_where_nobody_reads_its_output_any_more() -> None:
    """As in `python train.py 2>&1 | tee log`, where Ctrl-C ends `tee` too."""
    end = "from backbones.run.preemption import Preempted; os.dup2(1, 2); raise Preempted('saved')"
    assert python(PROGRAM.format(flush=False, end=end)).returncode == 75


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "said"), [("pass", "cannot print: No space left on device"), ("raise InputError('a')", "a")]
)
def test_a_full_disk_below_stdout(end: str, said: str, tmp_path: Path) -> None:
    """The error is the command's own, if it has one."""
    lines = ["from backbones.commands.exit import run_command", "from backbones.errors import InputError"]
    program = "\n".join([*lines, "def main(args):", "    print('a line')", f"    {end}", "run_command(main)"])
    with Path("/dev/full").open("w") as full:
        done = python(program, stdout=full)
    assert (done.stderr, done.returncode) == (f"error: {said}\n", 1)


@pytest.mark.slow
def test_names_that_stdout_cannot_encode() -> None:
    program = "from backbones.commands.exit import run_command; run_command(lambda args: print('caf\\xe9'))"
    done = python(program, PYTHONIOENCODING="ascii")
    assert (done.stdout, done.returncode) == ("caf\\xe9\n", 0), done.stderr


def python(program: str, *, stdout: int | IO[str] = subprocess.PIPE, **env: str) -> subprocess.CompletedProcess[str]:
    """A new interpreter, whose stdout has a buffer."""
    env = {**os.environ, "PYTHONUNBUFFERED": "", **env}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)


@pytest.mark.slow
def test_the_commands_are_listed_and_found(tmp_path) -> None:
    command = ["-m", "backbones"]
    done = run([*command, "--help"], cwd=tmp_path)
    assert done.returncode == 0 and "evaluate" in done.stdout and "reproduce" in done.stdout
    closed = f"exec {sys.executable} -m backbones --help >&- 2>&-"
    assert subprocess.run(["sh", "-c", closed], cwd=tmp_path).returncode == 0
    done = run([*command, "evalute", "x"], cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: unknown command 'evalute'; did you mean evaluate")
    assert done.stderr.count("\n") == 1
    done = run([*command, "profile", "airbench", "--batch-size", "1"], cwd=tmp_path)
    assert done.returncode == 0 and "| airbench | 1,971,640 |" in done.stdout


@pytest.mark.slow
def test_a_command_of_one_process_is_not_started_by_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each process would evaluate its own share of the images, and write it as the result."""
    done = run_ranks(2, "-m", "backbones", "evaluate", "run", cwd=tmp_path)
    assert done.returncode != 0
    wanted = "error: evaluate runs in one process, and torchrun has started several; start it without torchrun"
    assert [line for line in done.stderr.splitlines() if line.startswith("error")] == [wanted]
    monkeypatch.setattr("backbones.distributed.world_size", lambda: 2)
    for name in set(COMMANDS) - set(IN_PROCESSES):
        monkeypatch.setattr("sys.argv", ["backbones", name])
        with pytest.raises(SystemExit, match="1"):
            main()
        assert f"error: {name} runs in one process" in capsys.readouterr().err


def test_a_home_folder_may_stand_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--run-dir=~/a b", "--init-from", "~/c", "--data.root=d~", "~", "x=~"]
    )
    seen = []
    with pytest.raises(SystemExit):
        run_command(lambda args: seen.extend(args))
    assert seen == ["--run-dir=/home/me/a b", "--init-from", "/home/me/c", "--data.root=d~", "/home/me", "x=~"]


IN_A_TERMINAL = """
import sys
from tqdm import tqdm
from backbones.commands.exit import run_command
from backbones.run.preemption import Preempted

def main(args):
    bar = tqdm(total=2)
    print("begun", flush=True)
    sys.stdin.readline()
    bar.update()
    tqdm.write("a line")
    print("another one", flush=True)
    raise Preempted("saved")

run_command(main)
"""


@pytest.mark.slow
def test_a_run_goes_on_when_its_terminal_is_closed() -> None:
    ours, its = os.openpty()
    process = subprocess.Popen([sys.executable, "-c", IN_A_TERMINAL], stdin=subprocess.PIPE, stdout=its, stderr=its)
    os.close(its)
    shown = ""
    while "begun" not in shown:  # tqdm may have written its bar
        shown += os.read(ours, 1000).decode()
    os.close(ours)
    process.communicate(b"\n", timeout=300)
    assert process.returncode == 75


@pytest.mark.slow
def test_a_training_goes_on_when_its_pipe_is_closed(tmp_path: Path) -> None:
    """As by Ctrl-C in `train.py | tee log`, which ends `tee` too, when the state is not saved yet."""
    command = [sys.executable, str(ROOT / "train.py"), *f"{SMALL} --steps 2 --schedule.warmup-steps 0".split()]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("digits-vit-tiny: ")
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 0)
    assert (tmp_path / "runs" / "digits-vit-tiny" / "result.json").exists()
