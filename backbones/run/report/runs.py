"""Run folders as values."""

import dataclasses
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backbones.errors import InputError, shorten
from backbones.experiment import Experiment
from backbones.run.config import read_experiment
from backbones.run.files import read_json
from backbones.run.metric_lines import read_metrics
from backbones.run.provenance import list_resumes, read_starts
from backbones.run.run_dir import CONFIG, RESULT


@dataclasses.dataclass(frozen=True)
class Run:
    """What is in a run folder."""

    folder: Path
    experiment: Experiment
    finished: bool
    result: dict[str, Any]
    """`result.json`; of a run that is not finished what its other files tell, under the same names."""
    lines: list[dict[str, Any]]
    """`metrics.jsonl`."""
    starts: list[dict[str, Any]]
    """`provenance.json`."""

    def number(self, name: str) -> float | None:
        """A number of the result; None if it is not there, or not finite."""
        value = self.result.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return value if is_number else None

    def points(self, split: str, name: str) -> dict[int, float]:
        """Step -> value of a metric of one split, where it is finite."""
        values = {line["step"]: line.get(name) for line in self.lines if line["split"] == split}
        return {step: value for step, value in values.items() if value is not None and math.isfinite(value)}

    @property
    def command(self) -> str:
        """What started it, as it is typed for one process; empty if that is not known."""
        script, *args = shlex.split(self.starts[0].get("command", "") if self.starts else "") or [""]
        if Path(script).name == "__main__.py":
            return shlex.join(["python", "-m", Path(script).parent.name, *args])
        return shlex.join(["python"] * script.endswith(".py") + [script, *args]) if script else ""

    @property
    def changes(self) -> list[str]:
        """A line on each time that it was resumed with other settings."""
        return list_resumes(str(self.folder), self.starts)

    @property
    def environment(self) -> list[str]:
        """What it was last started with."""
        start = self.starts[-1] if self.starts else {}
        commit, packages, processes = start.get("git_commit"), start.get("packages", {}), start.get("num_processes")
        facts = {
            "torch {}": packages.get("torch"),
            "Python {}": start.get("python"),
            "{} threads": start.get("num_threads"),
            "{} processes": processes if processes != 1 else None,
            "{}": start.get("precision"),
            "commit {}": commit and commit[:12] + (", with changes" if start.get("git_dirty") else ""),
        }
        return [text.format(value) for text, value in facts.items() if value is not None]


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs in some folders, and a line on each that cannot be read.

    Raises:
        InputError: a folder holds no run, or no run can be read.
    """
    if not folders:
        raise InputError("no run was given; name one run folder or several, as runs/mine or runs/*")
    for folder in folders:
        _check_run(folder)
    runs, notes = [], []
    for folder in {folder.resolve(): folder for folder in folders}.values():
        try:
            runs.append(_read_run(folder))
        except (InputError, OSError) as error:
            notes.append(f"{folder} is left out: {error}")
        except Exception as error:  # of a module of the user's own, which holds a part of the experiment
            notes.append(f"{folder} is left out: {type(error).__name__}: {error}")
    if not runs:
        raise InputError("\n  ".join(["no run can be read:", *notes]))
    return runs, notes


def _check_run(folder: Path) -> None:
    if (folder / CONFIG).exists():
        return
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; name a run folder, as runs/mine")
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    hint = f"it holds runs: {shorten(inside)}; give {folder}/*/" if inside else "name a run folder, as runs/mine"
    raise InputError(f"there is no run in {folder}: no {folder / CONFIG}; {hint}")


def _read_run(folder: Path) -> Run:
    experiment = read_experiment(folder / CONFIG)
    lines, starts = read_metrics(folder), read_starts(folder)
    finished = (folder / RESULT).exists()
    result = read_json(folder / RESULT) if finished else _result_so_far(lines, starts)
    return Run(folder, experiment, finished, result, lines, starts)


def _result_so_far(lines: list[dict[str, Any]], starts: list[dict[str, Any]]) -> dict[str, Any]:
    last = {line["split"]: line for line in lines}
    test, train = last.get("test", {}), last.get("train", {})
    latest = lines[-1] if lines else {"step": 0}
    return {
        **{name: test.get(name) for name in ("loss", "top1", "top5")},
        "steps": latest["step"],
        "seconds": latest.get("seconds"),
        "images_per_second": train.get("images_per_second"),
        "device": starts[-1].get("device") if starts else None,
    }
