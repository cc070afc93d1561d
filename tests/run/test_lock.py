import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.race_for_a_folder import main as race
from helpers.runs import ROOT

from backbones.errors import InputError
from backbones.run.lock import locked

HOLD = (
    "import sys, time, pathlib; from backbones.run.lock import locked\n"
    "with locked(pathlib.Path(sys.argv[1])):\n    print('locked', flush=True)\n    time.sleep(600)"
)


def test_the_second_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, tmp_path / "run"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "locked\n"
        wanted = f"run is in use by process {holder.pid} on {socket.gethostname()}; wait until it ends, stop it, or "
        with pytest.raises(InputError, match=wanted), locked(tmp_path / "run"):
            pass
        os.kill(holder.pid, signal.SIGKILL)
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "log.txt").write_text("kept")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.txt"]


def test_a_folder_in_which_nothing_was_started_is_removed(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "run"):
        assert (tmp_path / "a" / "run" / "lock").exists()
    assert list((tmp_path / "a").iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wanted = r"cannot write into .*run: Not a directory; name another --run-dir"
    with pytest.raises(InputError, match=wanted), locked(tmp_path / "file" / "run"):
        pass


@pytest.mark.slow
def test_two_runs_race_for_one_folder() -> None:
    """tests/helpers/race_for_a_folder.py does it 20 times."""
    race(pairs=2)
