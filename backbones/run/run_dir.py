"""The folder of a run: what lies in it, which folder a new run takes, and that no run is ever written over another."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.run.checkpoint import Which, find_checkpoint, read_manifest
from backbones.run.files import atomic_write

RUNS = Path("runs")

IN_THE_STATE = ("optim", "clip", "ema", "seed", "init_from")
"""Fields of an experiment that a checkpoint holds, so that a new value would have no effect on a resumed run."""


class RunDir(NamedTuple):
    """The paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """The experiment."""
        return self.path / "config.json"

    @property
    def provenance(self) -> Path:
        """What the run was made with, one entry for each start."""
        return self.path / "provenance.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint, named by its step."""
        return self.path / "checkpoints"

    @property
    def result(self) -> Path:
        """How the run ended."""
        return self.path / "result.json"

    @property
    def curves(self) -> Path:
        """Loss and accuracy over the steps."""
        return self.path / "curves.png"


def new_run_dir(name: str) -> RunDir:
    """Make and take the first of `runs/NAME`, `runs/NAME-2`, ... that is free."""
    RUNS.mkdir(exist_ok=True)
    number = 1
    while True:
        path = RUNS / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()  # only one process can
            return RunDir(path)
        except FileExistsError:
            if path.is_dir() and not any(path.iterdir()):
                return RunDir(path)
            number += 1


def latest_run_dir(name: str) -> RunDir:
    """The one of `runs/NAME`, `runs/NAME-2`, ... with the highest number that holds a run; `runs/NAME` if none does."""
    numbers = {
        int(match[1] or 1): path
        for path in RUNS.glob(f"{name}*")
        if (match := re.fullmatch(re.escape(name) + r"(?:-(\d+))?", path.name)) and RunDir(path).config.exists()
    }
    return RunDir(numbers[max(numbers)] if numbers else RUNS / name)


def read_config(path: Path) -> dict[str, Any]:
    """The values in a `config.json`.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; put a copy of it there, or start a new run") from error


def read_experiment(source: Path, values: dict[str, Any]) -> Experiment:
    """The experiment of `values` that were read from `source`.

    Raises:
        InputError: this version of the program has no such experiment.
    """
    try:
        return Experiment.from_json(values)
    except InputError as error:
        raise InputError(f"cannot continue {source}: {error}; start a new run, or use that version") from error
    except (TypeError, KeyError) as error:
        raise InputError(f"{source} is not an experiment of this program: {error!r}; start a new run") from error


def stored_config(run_dir: RunDir, resume: Which) -> tuple[Path, dict[str, Any]] | None:
    """Where the configuration of a resumed run is stored, and its values; None if there is no run.

    Args:
        run_dir: the folder.
        resume: a path stands for the configuration of that checkpoint.

    Raises:
        InputError: it cannot be read, or there is no such checkpoint.
    """
    if isinstance(resume, Path):
        path = find_checkpoint(resume)
        return path, read_manifest(path).experiment
    return (run_dir.config, read_config(run_dir.config)) if run_dir.config.exists() else None


def write_config(run_dir: RunDir, experiment: Experiment) -> None:
    """Write `config.json`."""
    atomic_write(run_dir.config, json.dumps(experiment.to_json(), indent=2) + "\n")


def list_changes(before: Experiment, now: Experiment) -> dict[str, str]:
    """Option -> `OLD -> NEW`, for each in which two experiments differ; of another component only the function."""
    old, new = _flatten(before), _flatten(now)
    different = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return {
        name: f"{old.get(name)} -> {new.get(name)}"
        for name in different
        if name.partition(".")[0] not in different or "." not in name
    }


def _flatten(experiment: Experiment) -> dict[str, Any]:
    flat = {}
    for name, value in experiment.to_json().items():
        if isinstance(value, dict):
            flat[name] = value["function"].partition(":")[2].replace("_", "-")
            flat |= {f"{name}.{option}": each for option, each in value["options"].items()}
        else:
            flat[name] = value
    return json.loads(json.dumps(flat))  # tuples as the lists that they are on the disk


def prepare_run_dir(run_dir: RunDir, experiment: Experiment, *, resume: Which | None) -> dict[str, str]:
    """Make the folder of a new run, or check that it holds the run to resume.

    Args:
        run_dir: the folder.
        experiment: what is to run.
        resume: the checkpoint to resume; None for a new run.

    Returns:
        What has changed since the run that is resumed; see `list_changes`.

    Raises:
        InputError: the folder holds another run, or one that is not to be resumed, or none to resume; or it cannot be
            made.
    """
    changes = {}
    if resume is not None:
        stored = stored_config(run_dir, resume)
        if stored is not None:
            changes = list_changes(read_experiment(*stored), experiment)
            _refuse_changes_of_the_state(changes, run_dir)
        elif resume != "auto":
            raise InputError(f"no run to resume in {run_dir.path}; start it without --resume, or name its --run-dir")
    is_taken = any(path.is_file() for path in run_dir.path.rglob("*"))
    if is_taken and (resume is None or isinstance(resume, Path)):
        raise InputError(f"{run_dir.path} holds a run already; continue it with --resume, or name another --run-dir")
    try:
        run_dir.checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {run_dir.path}: {error.strerror}; name another --run-dir") from error
    return changes


def _refuse_changes_of_the_state(changes: dict[str, str], run_dir: RunDir) -> None:
    refused = [f"{name}: {change}" for name, change in changes.items() if name.partition(".")[0] in IN_THE_STATE]
    if refused:
        lines = [
            f"the run in {run_dir.path} cannot be resumed with other values of what its checkpoint holds; "
            "--init-from starts a new run from its weights:",
            *refused,
        ]
        raise InputError("\n  ".join(lines))
