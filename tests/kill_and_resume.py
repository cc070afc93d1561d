"""Kill a run again and again, at random moments, and let it go on: `python tests/kill_and_resume.py --kills 50`.

After each kill -9 every checkpoint must be whole, and nothing but temporary folders may lie beside them; each new
process must go on from the newest one; and the run must end as one that was left alone.
"""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro
from runs import SMALL, newest, without_times
from tqdm import tqdm

from backbones.checkpoint import list_steps, read_checkpoint

ROOT = Path(__file__).parent.parent


def command(run_dir: Path, *, steps: int) -> list[str]:
    options = f"{SMALL} --steps {steps} --save-every 1 --eval-every 50 --keep 5 --resume auto --run-dir"
    return [sys.executable, str(ROOT / "train.py"), *options.split(), str(run_dir)]


def live_and_die(run_dir: Path, *, steps: int, chance: random.Random) -> None:
    """Start the run, and kill it: one time in four at any moment of its life, else while it saves step after step."""
    before = newest(run_dir)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command(run_dir, steps=steps), stdout=output, stderr=output)
        if chance.random() < 0.25:
            time.sleep(chance.uniform(0, 6))
        else:
            while newest(run_dir) <= before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 1))
        process.kill()
        code = process.wait()
        output.seek(0)
        said = output.read()
    assert code == -9, f"it was not killed; if it was done, take more --steps:\n{said}"
    went_on = re.search(r"goes on from step (\d+)", said)
    assert went_on is None or int(went_on[1]) == before, said


def look_around(run_dir: Path) -> int:
    """Raise AssertionError if anything is there that should not be; give back the number of temporary folders."""
    folder = run_dir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    temporary = [name for name in names if name.endswith(".tmp")]
    assert all(name.isdecimal() for name in names if name not in temporary), names
    for step in list_steps(folder):
        assert read_checkpoint(folder / str(step)).manifest.step == step
    return len(temporary)


def main(*, kills: int = 50, steps: int = 600, seed: int = 0) -> None:
    """Kill a run, and compare its end with that of one that was left alone.

    Args:
        kills: how often to kill it.
        steps: of the run; more than come to pass between the kills.
        seed: of the moments.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # the number of threads decides how sums are rounded
    chance, left_behind = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        killed, straight = Path(folder) / "killed", Path(folder) / "straight"
        reached = []
        for _ in tqdm(range(kills), unit="kill", disable=not sys.stderr.isatty()):
            live_and_die(killed, steps=steps, chance=chance)
            left_behind += look_around(killed)
            reached.append(newest(killed))
        for run_dir in (killed, straight):
            subprocess.run(command(run_dir, steps=steps), check=True, stdout=subprocess.DEVNULL)
        results = [json.loads((run_dir / "result.json").read_text()) for run_dir in (killed, straight)]
        assert results[0]["params_sha256"] == results[1]["params_sha256"]
        assert without_times(killed) == without_times(straight)
        assert look_around(killed) == 0
        assert {path.name for path in killed.iterdir()} == {path.name for path in straight.iterdir()}
    print(
        f"killed {kills} times, at steps {reached}; {left_behind} times a temporary folder was left, and cleaned later"
    )
    print("the end is equal to the last bit")


if __name__ == "__main__":
    tyro.cli(main)
