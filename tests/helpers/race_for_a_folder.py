"""Start two runs in one folder at once, again and again.

`PYTHONPATH=.:tests python tests/helpers/race_for_a_folder.py --pairs 20`

One of them must train as if it were alone, and the other one must be refused with one line and change nothing.
"""

import json
import tempfile
from itertools import cycle
from pathlib import Path

import tyro
from helpers.processes import Process
from helpers.runs import ROOT, SMALL, without_times
from tqdm import tqdm


def start(run_dir: Path, *options: str) -> Process:
    return Process([ROOT / "train.py", *SMALL.split(), "--steps", "100", "--run-dir", run_dir, *options], cwd=ROOT)


def main(*, pairs: int = 20) -> None:
    """Race, and compare the winner with a run that was alone.

    Args:
        pairs: how many times.
    """
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "alone"
        first = start(alone)
        assert first.wait() == 0, first.stderr
        for i, options in zip(tqdm(range(pairs)), cycle([(), ("--resume", "auto")]), strict=False):
            run_dir = Path(folder) / str(i)
            runs = [start(run_dir, *options) for _ in range(2)]
            codes = [run.wait() for run in runs]
            outputs = [(run.stdout, run.stderr) for run in runs]
            assert sorted(codes) == [0, 1], outputs
            winner = runs[codes.index(0)]
            error = outputs[codes.index(1)][1]
            assert error.startswith(f"error: {run_dir} is in use by process {winner.pid} on "), outputs
            assert error.count("\n") == 1, outputs
            results = [json.loads((path / "result.json").read_text()) for path in (alone, run_dir)]
            assert results[0]["params_sha256"] == results[1]["params_sha256"]
            assert without_times(alone) == without_times(run_dir)
    print(f"{pairs} pairs: one trained, one was refused, and nothing was lost")


if __name__ == "__main__":
    tyro.cli(main)
