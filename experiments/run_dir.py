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


def write_experiment(run_dir: Path, experiment: Experiment) -> None:
    """Write `config.json`, which makes the folder the folder of a run."""
    if distributed.is_main():
        (run_dir / "config.json").write_text(json.dumps(experiment.to_json(), indent=2) + "\n")


def prepare_run_dir(run_dir: Path, *, resume: bool) -> None:
    """Make the folder of a new run, or make sure that there is a run to go on with.

    Raises:
        InputError: the folder holds a run that is not to be resumed, or none that could be, or cannot be made.
    """
    holds_a_run = (run_dir / "config.json").exists()
    if resume and not holds_a_run:
        raise InputError(f"no run to resume in {run_dir}; start it without --resume, or name another --run-dir")
    if holds_a_run and not resume:
        raise InputError(f"{run_dir} holds a run already; go on with it by --resume, or name another --run-dir")
    distributed.barrier()  # all ranks have looked before rank 0 writes
    if distributed.is_main():
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            (run_dir / "checkpoints").mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write into {run_dir}: {error.strerror}; name another --run-dir") from error
    distributed.barrier()
