"""Kill a run again and again, at random moments, and resume it.

`PYTHONPATH=.:tests python tests/helpers/kill_and_resume.py --kills 50`

After each kill -9 every checkpoint must be intact, with nothing but temporary folders beside them. Each new process
must resume from the newest one, and the result must be that of a run that was never killed.
"""

import json
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import tyro
from helpers.processes import Process, run
from helpers.runs import ROOT, SMALL, newest, without_times
from tqdm import tqdm

from backbones.run.checkpoint import list_steps, read_checkpoint

TIMEOUT = 300.0
"""Seconds until a run must have started and saved."""


def command(run_dir: Path, *, steps: int) -> list[str]:
    options = f"{SMALL} --steps {steps} --save-every 1 --eval-every 50 --keep 5 --resume auto --run-dir"
    return [str(ROOT / "train.py"), *options.split(), str(run_dir)]


def kill(run_dir: Path, *, steps: int, generator: random.Random) -> bool:
    """Start the run and kill it: one time in four anywhere between start and end, else after it has saved once more.

    Returns:
        Whether it was killed; False if it had ended before.
    """
    before = newest(run_dir)
    process = Process(command(run_dir, steps=steps), cwd=ROOT)
    deadline = time.monotonic() + TIMEOUT
    if generator.random() < 0.25:
        time.sleep(generator.uniform(0, 3))
    else:
        while newest(run_dir) <= before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 1))
    process.kill()
    code = process.wait()
    printed = process.stdout + process.stderr
    assert time.monotonic() < deadline, f"nothing was saved in {TIMEOUT} seconds:\n{printed}"
    assert code in (0, -signal.SIGKILL), printed
    resumed = re.search(r"resumed from step (\d+)", printed)
    assert resumed is None or int(resumed[1]) == before, printed
    return code != 0


def check_folder(run_dir: Path) -> int:
    """Raise AssertionError if anything unexpected is there; return the number of temporary folders."""
    folder = run_dir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    temporary = [name for name in names if name.endswith(".tmp")]
    assert all(name.isdecimal() for name in names if name not in temporary), names
    for step in list_steps(folder):
        assert read_checkpoint(folder / str(step)).manifest.step == step
    return len(temporary)


def main(*, kills: int = 50, steps: int = 600, seed: int = 0) -> None:
    """Kill a run, and compare its result with that of one that was never killed.

    A run that ends before it was killed so many times is started again from step 0.

    Args:
        kills: how many times to kill it.
        steps: steps of the run.
        seed: seed of the random moments.
    """
    generator, left_behind, reached = random.Random(seed), 0, []
    with tempfile.TemporaryDirectory() as folder:
        killed, straight = Path(folder) / "killed", Path(folder) / "straight"
        progress = tqdm(total=kills, unit="kill", disable=not sys.stderr.isatty())
        for _ in range(4 * kills):
            if kill(killed, steps=steps, generator=generator):
                left_behind += check_folder(killed)
                reached.append(newest(killed))
                progress.update()
            else:
                shutil.rmtree(killed)
            if len(reached) == kills:
                break
        else:
            raise AssertionError(f"runs of {steps} steps end before they are killed; use more --steps")
        for run_dir in (killed, straight):
            done = run(command(run_dir, steps=steps), cwd=ROOT)
            assert done.returncode == 0, done.stdout + done.stderr
        results = [json.loads((run_dir / "result.json").read_text()) for run_dir in (killed, straight)]
        assert results[0]["params_sha256"] == results[1]["params_sha256"]
        assert without_times(killed) == without_times(straight)
        assert check_folder(killed) == 0
        assert {path.name for path in killed.iterdir()} == {path.name for path in straight.iterdir()}
    print(f"killed {kills} times, at steps {reached}; {left_behind} temporary folders were left, and deleted later")
    print("the result is equal to the last bit")


if __name__ == "__main__":
    tyro.cli(main)
