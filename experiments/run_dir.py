"""The run folder's `config.json`: which experiment a folder holds, and that no run is ever written over another."""

import json
from pathlib import Path

import backbones.distributed as distributed
from backbones.types import InputError
from experiments.base import Experiment


def read_experiment(run_dir: Path) -> Experiment | None:
    """The experiment of a run folder; None if it holds no run.

    Raises:
        InputError: `config.json` cannot be understood.
    """
    path = run_dir / "config.json"
    if not path.exists():
        return None
    try:
        return Experiment.from_json(json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged, or of another version of this program: {error!r}") from error


def open_run_dir(run_dir: Path, experiment: Experiment, *, resume: bool) -> None:
    """Make the folder of a new run and write its `config.json`, or make sure that there is a run to go on with.

    Raises:
        InputError: the folder holds a run and is not to be resumed, or the other way round, or cannot be written.
    """
    path = run_dir / "config.json"
    if resume and not path.exists():
        raise InputError(
            f"there is no run to resume in {run_dir}; start it without --resume, or name another --run-dir"
        )
    if path.exists() and not resume:
        raise InputError(f"{run_dir} holds a run already; go on with it by --resume, or name another --run-dir")
    distributed.barrier()  # all ranks have looked before rank 0 writes
    if distributed.is_main():
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(experiment.to_json(), indent=2) + "\n")
        except OSError as error:
            raise InputError(f"cannot write into {run_dir}: {error.strerror}; name another --run-dir") from error
    distributed.barrier()
