"""The folder of a run. No run is ever written over another.

config.json        the experiment
provenance.json    what the run was made with, one entry for each start
bad_files.txt      files of the data set that are left out, if there are any
metrics.jsonl      metrics, one JSON object per line
tensorboard/       the same metrics as event files
spikes/            samples and images of steps at which the loss was a spike, or something was not finite, if any were
trackers.json      the run's id in each of --log-to
checkpoints/       one folder per checkpoint, named by its step
lock               which process writes here, while it does
result.json        how the run ended
curves.png         loss and accuracy over the steps
"""

import re
from itertools import count
from pathlib import Path

from backbones.errors import InputError
from backbones.run.files import read_json

RUNS = Path("runs")

CONFIG, RESULT, CHECKPOINTS = "config.json", "result.json", "checkpoints"


def new_run_dir(name: str, parent: Path = RUNS) -> Path:
    """Make the next of `runs/NAME`, `runs/NAME-2`, ..., after the last one that is taken, and return its path."""
    parent.mkdir(exist_ok=True)
    taken = [number for number, path in _numbered(name, parent).items() if not _is_empty(path)]
    number = max(taken, default=0) + 1
    while True:
        path = _run_dir(name, number, parent)
        try:
            path.mkdir()  # only one process can
            return path
        except FileExistsError:
            number += 1


def latest_run_dir(name: str) -> Path:
    """The last of `runs/NAME`, `runs/NAME-2`, ... that holds a run; if none does, the first that holds nothing else.

    A folder that is called so may be that of another experiment, whose own name ends in a number.
    """
    names = {number: _name_in(path) for number, path in _numbered(name, RUNS).items()}
    own = [number for number, found in names.items() if found in (name, None)]
    number = max(own) if own else next(number for number in count(1) if not names.get(number))
    return _run_dir(name, number, RUNS)


def _run_dir(name: str, number: int, parent: Path) -> Path:
    return parent / (name if number == 1 else f"{name}-{number}")


def _numbered(name: str, parent: Path) -> dict[int, Path]:
    """Number -> path, of all that is called `NAME` or `NAME-NUMBER`."""
    pattern = re.compile(re.escape(name) + r"(?:-([2-9]|[1-9]\d+))?")
    matches = {path: pattern.fullmatch(path.name) for path in parent.glob("*")}
    return {int(match[1] or 1): path for path, match in matches.items() if match}


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _name_in(run_dir: Path) -> str | None:
    """The name of the experiment in a folder: None if its configuration is damaged, and empty if there is none."""
    try:
        return read_json(run_dir / CONFIG).get("name") if (run_dir / CONFIG).exists() else ""
    except InputError:
        return None
