"""Kill a sweep again and again, at random moments, and start the same command again.

`PYTHONPATH=.:tests python tests/helpers/kill_sweep.py --how processes --kills 5`

The tables, the parameters and the lines of metrics at the end must be those of a sweep that was never killed.
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import tyro
from helpers.processes import Process, run
from helpers.runs import ROOT, SMALL, newest, without_times
from tqdm import tqdm

from backbones.run.sweep.members import read_sweep

TIMEOUT = 600.0
"""Seconds until a sweep must have come to the next kill."""

RATES = ("1e-3", "2e-3", "3e-3", "1e39")
"""The last one diverges."""


def command(folder: Path, how: str, *, rates: int, seeds: int, steps: int) -> list[str]:
    base = (
        f"sweep experiments.digits:digits_vit_tiny {SMALL} --steps {steps} --save-every 4 --eval-every 8 --log-every 2"
    )
    axes = f"--over optim.lr {' '.join(RATES[-rates:])} --over seed {' '.join(map(str, range(seeds)))}"
    return ["-m", "backbones", *f"{base} {axes} --how {how} --sweep-dir".split(), str(folder)]


def progress(folder: Path) -> int:
    """Steps that all members together have saved."""
    return sum(max(newest(run_dir), 0) for run_dir in folder.glob("*-seed-*"))


def kill(args: list[str], folder: Path, *, at: float) -> bool:
    """Start the sweep, and kill it when so many steps are saved; False if it ends before."""
    process = Process(args, cwd=ROOT)
    deadline = time.monotonic() + TIMEOUT
    while progress(folder) < at and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    code = process.wait()
    assert time.monotonic() < deadline and code <= 0, process.stdout + process.stderr
    return code != 0


def contents(folder: Path) -> dict[str, object]:
    """All of a finished sweep that must be equal in another one."""
    found: dict[str, object] = {name: (folder / name).read_text() for name in ("table.md", "table.csv")}
    for member in read_sweep(folder)[0].members:
        run_dir = folder / member.name
        found[f"{member.name} metrics"] = without_times(run_dir)
        found[f"{member.name} files"] = sorted(path.name for path in run_dir.iterdir() if path.name != "lock")
        if (run_dir / "result.json").exists():
            found[f"{member.name} params"] = json.loads((run_dir / "result.json").read_text())["params_sha256"]
    return found


def main(
    *,
    how: Literal["sequence", "processes", "vmap"] = "sequence",
    kills: int = 5,
    rates: int = 4,
    seeds: int = 3,
    steps: int = 100,
    seed: int = 0,
) -> None:
    """Kill a sweep, and compare what it ends with to that of one that was never killed.

    Args:
        how: the way in which it is run.
        kills: how many times to kill it.
        rates: learning rates, of which one diverges.
        seeds: seeds of each.
        steps: steps of each run.
        seed: seed of the random moments.
    """
    generator, reached = random.Random(seed), []
    with tempfile.TemporaryDirectory() as temporary:
        killed, straight = Path(temporary) / "killed", Path(temporary) / "straight"
        total = (rates - 1) * seeds * steps
        for i in tqdm(range(kills), unit="kill", disable=not sys.stderr.isatty()):
            args = command(killed, how, rates=rates, seeds=seeds, steps=steps)
            at = total * (i + generator.random()) / (kills + 0.5)
            if kill(args, killed, at=at):
                reached.append(progress(killed))
        for folder in (killed, straight):
            args = command(folder, how, rates=rates, seeds=seeds, steps=steps)
            done = run(args, cwd=ROOT)
            assert done.returncode == 0, done.stdout + done.stderr
        assert len(reached) == kills, "it ended before it was killed; use more --steps"
        one, other = contents(killed), contents(straight)
        different = {name: (value, other.get(name)) for name, value in one.items() if value != other.get(name)}
        assert not different, different
        print((killed / "table.md").read_text())
    print(f"{how}: killed {kills} times, when {reached} of {total} steps were saved; the tables and all bits are equal")


if __name__ == "__main__":
    tyro.cli(main)
