"""A disk that is full, and one that cannot be written: real ones, in a mount namespace of the test's own."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from runs import SMALL

from backbones.checkpoint import list_steps, read_checkpoint

UNSHARE = ["unshare", "--map-root-user", "--mount"]

pytestmark = pytest.mark.skipif(
    subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode != 0,
    reason="this machine does not let its user mount a tmpfs",
)

SCRIPT = """
mkdir -p run/checkpoints
mount -t tmpfs -o size={size} none run/checkpoints
"$@" &
if {read_only}; then
    while [ ! -d run/checkpoints/10 ]; do sleep 0.02; done
    mount -o remount,ro run/checkpoints
fi
wait $!
code=$?
cp -r run/checkpoints saved
exit $code
"""


def run(folder: Path, *, size: str, read_only: bool, on_save_error: str) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(size=size, read_only=str(read_only).lower())
    options = (
        f"{SMALL} --steps 60 --save-every 10 --eval-every 60 --keep 9 --on-save-error {on_save_error} --run-dir run"
    )
    command = [*UNSHARE, "sh", "-c", script, "sh", sys.executable, ROOT / "train.py", *options.split()]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


DISKS = {
    "full": ({"size": "3m", "read_only": False}, "No space left on device"),
    "read-only": ({"size": "30m", "read_only": True}, "Read-only file system"),
}


@pytest.mark.parametrize("disk", list(DISKS))
def test_a_disk_that_takes_no_more_stops_the_run(disk: str, tmp_path: Path) -> None:
    options, reason = DISKS[disk]
    done = run(tmp_path, **options, on_save_error="stop")
    saved = list_steps(tmp_path / "saved")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: could not save step {saved[-1] + 10} in run/checkpoints: {reason}")
    assert f"as they were: {', '.join(map(str, saved))}." in done.stderr
    assert not (tmp_path / "run" / "result.json").exists()
    assert (
        len(saved) >= 2 and [read_checkpoint(tmp_path / "saved" / str(step)).manifest.step for step in saved] == saved
    )


@pytest.mark.parametrize("disk", list(DISKS))
def test_or_does_not(disk: str, tmp_path: Path) -> None:
    options, reason = DISKS[disk]
    done = run(tmp_path, **options, on_save_error="continue")
    saved = list_steps(tmp_path / "saved")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    warnings = [line for line in done.stdout.splitlines() if line.startswith("warning: could not save step ")]
    assert len(warnings) >= 3 and all(reason in line for line in warnings)
    assert (tmp_path / "run" / "result.json").exists()
    assert (
        len(saved) >= 2 and [read_checkpoint(tmp_path / "saved" / str(step)).manifest.step for step in saved] == saved
    )
