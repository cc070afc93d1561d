"""Disks that are full, read-only or broken."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from helpers.processes import run
from helpers.runs import ROOT, SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from backbones.run.checkpoint import list_steps, read_checkpoint
from backbones.run.metric_lines import read_metrics

pytestmark = pytest.mark.slow

UNSHARE = ["unshare", "--map-root-user", "--mount"]

can_mount = pytest.mark.skipif(
    subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode != 0,
    reason="this machine does not let its user mount a tmpfs",
)


def test_a_fault_at_any_operation_of_a_save_is_one_error(tmp_path: Path) -> None:
    """Without any other output, also when Python exits; earlier checkpoints are unchanged. See `disk_faults.py`."""
    done = run([ROOT / "tests" / "helpers" / "disk_faults.py", tmp_path], cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    saves = dict(line.split() for line in done.stdout.splitlines())
    assert list(saves) == ["ENOSPC", "EROFS", "EIO", "EFBIG"]
    assert int(saves["ENOSPC"]) >= 15 and int(saves["EROFS"]) >= 30 and int(saves["EIO"]) >= 60


def train_on_a_disk(
    folder: Path, options: str, *, disk: str, size: str, commands: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Train in `run`, with a disk of its own for a part of it, and copy it to `saved`."""
    script = ROOT / "tests" / "helpers" / "on_a_disk.py"
    options = f"{SMALL} --save-every 10 --run-dir run {options}"
    return run([script, disk, size, json.dumps(commands), *options.split()], cwd=folder)


def read_all(checkpoints: Path) -> list[int]:
    """The steps of all checkpoints, which are intact, and alone there."""
    steps = list_steps(checkpoints)
    assert [read_checkpoint(checkpoints / str(step)).manifest.step for step in steps] == steps
    assert sorted(path.name for path in checkpoints.iterdir()) == sorted(map(str, steps))
    return steps


def warned_steps(stdout: str, reason: str) -> list[int]:
    """The steps that could not be saved, according to the warnings."""
    return [int(step) for step in re.findall(rf"^warning: could not save step (\d+) in \S+: {reason}", stdout, re.M)]


DISKS = {
    "full": ("3m", {}, r"No space left on device \("),
    "read-only": (
        "30m",
        {
            "os.mkdir run/checkpoints/20.tmp": "mount -o remount,ro run/checkpoints",
            "os.mkdir run/checkpoints/40.tmp": "mount -o remount,rw run/checkpoints",
        },
        "Read-only file system;",
    ),
}
"""Size, what happens to it, and the reason that is given. A disk of 3 MB takes some checkpoints and not all."""


@can_mount
@pytest.mark.parametrize("disk", list(DISKS))
def test_a_disk_that_cannot_be_written_stops_the_run(disk: str, tmp_path: Path) -> None:
    size, commands, reason = DISKS[disk]
    options = "--steps 60 --eval-every 60 --keep 9"
    done = train_on_a_disk(tmp_path, options, disk="run/checkpoints", size=size, commands=commands)
    steps = read_all(tmp_path / "saved" / "checkpoints")
    assert len(steps) >= 2 and done.returncode == 1
    assert re.fullmatch(rf"error: could not save step {steps[-1] + 10} in run/checkpoints: {reason}.*\n", done.stderr)
    assert not (tmp_path / "run" / "result.json").exists()


@can_mount
@pytest.mark.parametrize("disk", list(DISKS))
def test_a_run_continues_without_checkpoints_if_requested(disk: str, tmp_path: Path) -> None:
    size, commands, reason = DISKS[disk]
    options = "--steps 60 --eval-every 60 --keep 9 --on-save-error continue"
    done = train_on_a_disk(tmp_path, options, disk="run/checkpoints", size=size, commands=commands)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    steps, missing = read_all(tmp_path / "saved" / "checkpoints"), warned_steps(done.stdout, reason)
    assert len(steps) >= 2 and sorted(steps + missing) == [0, 10, 20, 30, 40, 50, 60]
    assert missing == [20, 30] or disk == "full"
    assert (tmp_path / "run" / "result.json").exists()


@can_mount
def test_metrics_wait_while_the_disk_is_full(tmp_path: Path) -> None:
    commands = {
        "os.mkdir run/checkpoints/20.tmp": "dd if=/dev/zero of=run/filler bs=4k 2> /dev/null; test -s run/filler",
        "os.mkdir run/checkpoints/80.tmp": "rm run/filler",
    }
    options = "--steps 100 --log-every 1 --eval-every 100 --keep 3 --on-save-error continue"
    done = train_on_a_disk(tmp_path, options, disk="run", size="30m", commands=commands)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert re.search(
        r"^warning: cannot write run/\S+: No space left on device; metrics are kept in memory and written",
        done.stdout,
        re.M,
    )
    steps = [line["step"] for line in read_metrics(tmp_path / "saved") if line["split"] == "train"]
    assert steps == list(range(1, 101))
    events = EventAccumulator(str(tmp_path / "saved" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == steps
    assert warned_steps(done.stdout, "No space left on device") == list(range(20, 80, 10))
    assert read_all(tmp_path / "saved" / "checkpoints")[-1] == 100
