"""A disk that is full, and one that cannot be written: real ones, in a mount namespace of the test's own."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from runs import SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from backbones.checkpoint import list_steps, read_checkpoint
from backbones.metric_writer import read_metrics

UNSHARE = ["unshare", "--map-root-user", "--mount"]

pytestmark = pytest.mark.skipif(
    subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode != 0,
    reason="this machine does not let its user mount a tmpfs",
)

STOP_AND_GO = """
mkdir run
mount -t tmpfs -o size=30m none run
"$@" &
while [ ! -d run/checkpoints/10 ]; do sleep 0.02; done
dd if=/dev/zero of=run/filler bs=4k 2> /dev/null
while kill -0 $! && ! { grep -q 'cannot write' said && grep -q 'could not save' said; }; do sleep 0.02; done
rm run/filler
wait $!
code=$?
cp -r run saved
exit $code
"""


def test_a_disk_that_is_full_to_the_last_byte_for_a_while(tmp_path: Path) -> None:
    """Metrics wait for room as well."""
    options = f"{SMALL} --steps 300 --log-every 1 --save-every 10 --eval-every 300 --keep 3 --on-save-error continue"
    command = [sys.executable, ROOT / "train.py", *options.split(), "--run-dir", "run"]
    with (tmp_path / "said").open("w") as said:
        script = [*UNSHARE, "sh", "-c", STOP_AND_GO, "sh", *command]
        done = subprocess.run(script, cwd=tmp_path, stdout=said, stderr=subprocess.PIPE, text=True)
    lines = (tmp_path / "said").read_text().splitlines()
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert any(line.startswith("warning: cannot write run/") and "metrics wait until" in line for line in lines)
    steps = [line["step"] for line in read_metrics(tmp_path / "saved" / "metrics.jsonl") if line["split"] == "train"]
    assert steps == list(range(1, 301))
    events = EventAccumulator(str(tmp_path / "saved" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == steps
    assert any(line.startswith("warning: could not save step ") for line in lines)
    assert list_steps(tmp_path / "saved" / "checkpoints")[-1] == 300


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
