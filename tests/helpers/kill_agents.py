"""Two torchruns, as on two machines, one process each: kill one of the four again and again, and let it go on.

`PYTHONPATH=.:tests python tests/helpers/kill_agents.py --kills 20`

A torchrun restarts processes that die. When it dies itself, whoever runs the job starts the whole job again: here that
is this program. The result must be that of a run that was never killed, within a limit of time for each kill.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import tyro
from helpers.processes import run_ranks
from helpers.runs import ROOT, SMALL, free_port, newest, without_times
from tqdm import tqdm

TIMEOUT = 200.0
"""Seconds until a run must have saved once more, or have ended."""


def training(run_dir: Path, *, steps: int) -> list[str]:
    options = f"{SMALL} --steps {steps} --save-every 2 --eval-every 50 --resume auto --run-dir {run_dir}"
    return [str(ROOT / "train.py"), *options.split()]


class Job:
    """Two torchruns that find each other at a port of this machine."""

    def __init__(self, run_dir: Path, *, steps: int) -> None:
        torchrun = "-m torch.distributed.run --nnodes 2 --nproc_per_node 1 --max_restarts 3 --rdzv_backend c10d"
        rendezvous = f"--rdzv_endpoint=127.0.0.1:{free_port()}"
        command = [sys.executable, *torchrun.split(), rendezvous, *training(run_dir, steps=steps)]
        self.run_dir, self.output = run_dir, tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.agents = [subprocess.Popen(command, stdout=self.output, stderr=self.output) for _ in range(2)]

    def codes(self) -> list[int | None]:
        """Exit code of each torchrun; None while it runs."""
        return [agent.poll() for agent in self.agents]

    def workers(self) -> list[int]:
        """Process ids of those that train."""
        listed = [subprocess.run(["pgrep", "-P", str(agent.pid)], capture_output=True) for agent in self.agents]
        return [int(pid) for each in listed for pid in each.stdout.split()]

    def end(self) -> str:
        """Kill what is left, also processes whose torchrun is gone, as a cluster does; return what was printed."""
        subprocess.run(["pkill", "-KILL", "-f", self.run_dir])
        for agent in self.agents:
            agent.wait()
        with self.output:
            self.output.seek(0)
            return self.output.read()


def main(*, kills: int = 20, steps: int = 400, seed: int = 0) -> None:
    """Kill processes of a run, and compare its result with that of one that was never killed.

    Args:
        kills: how many processes to kill.
        steps: steps of the run.
        seed: seed of the random moments.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        killed, straight = Path(folder) / "killed", Path(folder) / "straight"
        done = run_ranks(2, *training(straight, steps=steps), cwd=ROOT)
        assert done.returncode == 0, done.stderr
        print(_train(killed, kills, steps, generator))
        results = [json.loads((run_dir / "result.json").read_text()) for run_dir in (killed, straight)]
        assert results[0]["params_sha256"] == results[1]["params_sha256"]
        assert without_times(killed) == without_times(straight)
    print("the result is equal to the last bit")


def _train(run_dir: Path, kills: int, steps: int, generator: random.Random) -> str:
    """Train to the end; return what happened."""
    job, events, num_jobs = Job(run_dir, steps=steps), [], 1
    victims: list[Literal["worker", "torchrun"]] = [("worker", "torchrun")[i % 2] for i in range(kills)]
    before, deadline = -1, time.monotonic() + TIMEOUT
    progress = tqdm(total=kills, unit="kill", disable=not sys.stderr.isatty())
    while job.codes() != [0, 0]:
        time.sleep(0.02)
        assert time.monotonic() < deadline, f"no progress after {events}:\n{job.end()}"
        if any(code not in (None, 0) for code in job.codes()):
            job.end()
            job, num_jobs = Job(run_dir, steps=steps), num_jobs + 1
        if newest(run_dir) <= before:
            continue
        before, deadline = newest(run_dir), time.monotonic() + TIMEOUT
        if victims:
            time.sleep(generator.uniform(0, 0.3))
            pids = job.workers() if victims[0] == "worker" else [agent.pid for agent in job.agents]
            if not pids:  # they have just ended
                continue
            os.kill(generator.choice(pids), 9)
            events.append(f"{victims.pop(0)} at {before}")
            progress.update()
    job.end()
    return f"killed {len(events)} processes ({', '.join(events)}) in {num_jobs} jobs"


if __name__ == "__main__":
    tyro.cli(main)
