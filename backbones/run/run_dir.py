"""The folder of a run. No run is ever written over another.

config.json        the experiment
provenance.json    what the run was made with, one entry for each start
bad_files.txt      files of the data set that are left out, if there are any
metrics.jsonl      metrics, one JSON object a line
tensorboard/       the same metrics as event files
spikes/            samples and images of steps at which the loss was a spike, or something was not finite, if any were
trackers.json      the run's id in each of --log-to
checkpoints/       one folder a checkpoint, named by its step
lock               which process writes here, while it does
result.json        how the run ended
curves.png         loss and accuracy over the steps
"""

import json
import re
from collections.abc import Collection
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.run.checkpoint import CorruptCheckpoint, Which, find_checkpoint, list_steps, read_manifest
from backbones.run.files import read_json, write_json
from backbones.run.provenance import read_starts

RUNS = Path("runs")

CONFIG = "config.json"

IN_THE_STATE = ("optim", "clip", "ema", "seed", "init_from", "freeze", "train_only", "layer_decay", "trunk_lr")
"""Fields of an experiment that a checkpoint holds, so that a new value would have no effect on a resumed run."""

IN_THE_STEPS = (
    *("augment", "model", "schedule", "loss", "batch_size", "accumulate", "weight_decay_mask", "class_weights"),
    *("sampling", "label_smoothing", "precision", "nonfinite", "spike", "rewind", "pass_over", "sync_batch_norm"),
)
"""Fields that act in the steps of a run, so that a new value would have no effect on one without steps left."""


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


def read_experiment(path: Path) -> Experiment:
    """The experiment in a `config.json`.

    Raises:
        InputError: it cannot be read, or this version of the program has no such experiment.
    """
    return parse_experiment(path, read_json(path))


def parse_experiment(source: Path, values: dict[str, Any]) -> Experiment:
    """The experiment of `values` that were read from `source`.

    Raises:
        InputError: this version of the program has no such experiment.
    """
    try:
        return Experiment.from_json(values)
    except InputError as error:
        raise InputError(f"cannot continue {source}: {error}; start a new run, or use that version") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{source} is not an experiment of this program: {error!r}; start a new run") from error


def write_config(run_dir: Path, experiment: Experiment) -> None:
    """Write the `config.json` of a run."""
    write_json(run_dir / CONFIG, experiment.to_json())


def config_to_resume(run_dir: Path, resume: Which) -> tuple[Path, dict[str, Any]] | None:
    """Path and values of the configuration to resume: that of the run, or of the checkpoint if `resume` is a path.

    None if the folder holds no run.

    Raises:
        InputError: it cannot be read, or there is no such checkpoint.
    """
    path = run_dir / CONFIG
    if isinstance(resume, Path) or not path.exists():
        return _checkpoint_config(run_dir, resume)
    return path, read_json(path)


def _checkpoint_config(run_dir: Path, resume: Which) -> tuple[Path, dict[str, Any]] | None:
    """Path and values of the configuration in the checkpoint to resume; None if there is none that can be read."""
    steps = list_steps(run_dir / "checkpoints")
    if isinstance(resume, Path) or (steps and resume not in ("auto", "latest")):
        paths = [find_checkpoint(run_dir, resume)]
    else:
        paths = [run_dir / "checkpoints" / str(step) for step in reversed(steps)]
    for path in paths:
        with suppress(CorruptCheckpoint):  # reported when it is restored
            return path, read_manifest(path).experiment
    return None


def list_changes(before: Experiment, now: Experiment) -> dict[str, str]:
    """Option -> `OLD -> NEW`, for each option that differs; of a component that was replaced, its name alone."""
    old, new = flatten(before), flatten(now)
    different = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return {
        name: f"{old.get(name)} -> {new.get(name)}"
        for name in different
        if name.partition(".")[0] not in different or "." not in name
    }


def flatten(experiment: Experiment) -> dict[str, Any]:
    """Option -> value as plain data: of a component its short name, or the path of one's own, and each of its options
    as `COMPONENT.OPTION`."""
    flat = {}
    for name, value in experiment.to_json().items():
        if isinstance(value, dict):
            module, _, short = value["function"].partition(":")
            flat[name] = short.replace("_", "-") if module.startswith("backbones.") else value["function"]
            flat |= {f"{name}.{option}": each for option, each in value["options"].items()}
        else:
            flat[name] = value
    return json.loads(json.dumps(flat))  # tuples become lists, as in the stored one


def check_run_dir(run_dir: Path, experiment: Experiment, *, resume: Which | None) -> dict[str, str]:
    """Check that a folder is free for a new run, or holds the run to resume. Other files may be in it.

    Returns:
        What has changed since the checkpoint that is resumed; see `list_changes`.

    Raises:
        InputError: the folder holds another run, or no run to resume.
    """
    changes = {}
    if resume is not None:
        starts = read_starts(run_dir)  # which the run will add to
        if resume == "auto" and not list_steps(run_dir / "checkpoints") and starts and starts[0].get("step"):
            raise InputError(
                f"the run in {run_dir} began at a later step than 0, and has no checkpoint; delete the folder, and "
                "start again, or from a checkpoint elsewhere with --resume PATH"
            )
        # of the checkpoint, whose hashes are checked: a `config.json` may have been edited or damaged
        stored = _checkpoint_config(run_dir, resume) or config_to_resume(run_dir, resume)
        if stored is not None:
            changes = list_changes(parse_experiment(*stored), experiment)
            if refused := _lines_of(changes, IN_THE_STATE):
                message = f"the run in {run_dir} cannot be resumed with other values of what its checkpoint holds"
                raise InputError("\n  ".join([f"{message}; --init-from starts a new run from its weights:", *refused]))
        elif resume != "auto":
            raise InputError(f"no run to resume in {run_dir}; start it without --resume, or name its --run-dir")
    is_taken = (run_dir / CONFIG).exists() or bool(list_steps(run_dir / "checkpoints"))
    if is_taken and (resume is None or isinstance(resume, Path)):
        raise InputError(f"{run_dir} holds a run already; continue it with --resume, or name another --run-dir")
    return changes


def check_steps_left(changes: dict[str, str], run_dir: Path) -> None:
    """Raise InputError if changes of a run that has no steps left would have no effect."""
    if vain := _lines_of(changes, IN_THE_STEPS):
        raise InputError(
            "\n  ".join([f"the run in {run_dir} has no steps left, so these changes would have no effect:", *vain])
            + "\ngive it more --steps, or leave them out"
        )


def _lines_of(changes: dict[str, str], fields: Collection[str]) -> list[str]:
    """A line for each change of one of these fields, or of an option of one."""
    return [f"{name}: {change}" for name, change in changes.items() if name.partition(".")[0] in fields]
