"""The run folder's `config.json`: which experiment a folder holds, and that no run is ever written over another."""

import json
from pathlib import Path
from typing import Any

import backbones.distributed as distributed
from backbones.checkpoint import find_checkpoint, is_path, read_manifest
from backbones.errors import InputError
from backbones.files import write_whole
from experiments.base import Experiment

STORED_IN_THE_STATE = ("optim", "clip", "ema", "seed", "init_from")
"""Fields of an experiment that live on in the checkpoint, where a new value would go unheeded."""


def read_experiment(run_dir: Path) -> Experiment | None:
    """The experiment of a run folder; None if it holds no run.

    Raises:
        InputError: `config.json` cannot be understood.
    """
    path = run_dir / "config.json"
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(
            f"{path} is damaged: {error}; put a copy of it there, or start with another --run-dir"
        ) from error
    return _from_json(path, values)


def experiment_to_resume(run_dir: Path, resume: str) -> Experiment | None:
    """The experiment that `--resume` goes on with: that of the run folder, or of the checkpoint named by a path.

    Raises:
        InputError: it cannot be understood, or there is no such checkpoint.
    """
    if not is_path(resume):
        return read_experiment(run_dir)
    path = find_checkpoint(Path(resume))
    return _from_json(path, read_manifest(path).experiment)


def _from_json(path: Path, values: dict[str, Any]) -> Experiment:
    try:
        return Experiment.from_json(values)
    except (TypeError, KeyError) as error:
        raise InputError(
            f"{path} is of another version of this program: {error!r}; start with another --run-dir"
        ) from error


def write_experiment(run_dir: Path, experiment: Experiment) -> None:
    """Write `config.json` on rank 0."""
    if distributed.is_main():
        write_whole(run_dir / "config.json", json.dumps(experiment.to_json(), indent=2) + "\n")


def list_changes(before: Experiment, now: Experiment) -> dict[str, str]:
    """Option -> `OLD -> NEW`, for each in which two experiments differ; of another component only the name."""
    old, new = _flatten(before.to_json()), _flatten(now.to_json())
    different = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return {
        name: f"{old.get(name)} -> {new.get(name)}"
        for name in different
        if name.partition(".")[0] not in different or "." not in name
    }


def _flatten(values: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {name if key == "name" else f"{name}.{key}": child for key, child in value.items()}
        else:
            flat[name] = value
    return json.loads(json.dumps(flat))  # tuples as the lists that they are on the disk


def prepare_run_dir(run_dir: Path, experiment: Experiment, *, resume: str | None) -> dict[str, str]:
    """Make the folder of a new run, or make sure that it holds the run that the experiment goes on with.

    Args:
        run_dir: the folder.
        experiment: what is to run.
        resume: see `Checkpoints.restore`; None for a new run.

    Returns:
        What has changed since the run that is resumed; see `list_changes`.

    Raises:
        InputError: the folder holds another run, or one that is not to be resumed, or none to resume; or it cannot be
            made.
    """
    changes = {}
    if resume is not None:
        stored = experiment_to_resume(run_dir, resume)
        if stored is not None:
            changes = list_changes(stored, experiment)
            _refuse_unheeded(changes, run_dir)
        elif resume != "auto":
            raise InputError(f"no run to resume in {run_dir}; start it without --resume, or name another --run-dir")
    is_taken = any(path.is_file() for path in run_dir.rglob("*"))
    if is_taken and (resume is None or is_path(resume)):
        raise InputError(f"{run_dir} holds a run already; go on with it by --resume, or name another --run-dir")
    distributed.barrier()  # all ranks have looked before rank 0 writes

    def make_folders() -> None:
        try:
            (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write into {run_dir}: {error.strerror}; name another --run-dir") from error

    distributed.on_main(make_folders)
    return changes


def _refuse_unheeded(changes: dict[str, str], run_dir: Path) -> None:
    unheeded = [
        f"{name}: {change}" for name, change in changes.items() if name.partition(".")[0] in STORED_IN_THE_STATE
    ]
    if unheeded:
        raise InputError(
            "\n  ".join(
                [
                    f"the run in {run_dir} cannot go on with other values of what its checkpoint holds; "
                    "--init-from starts a new run from its weights:",
                    *unheeded,
                ]
            )
        )
