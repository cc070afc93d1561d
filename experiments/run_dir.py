"""The run folder's `config.json`: which experiment a folder holds, and that no run is ever written over another."""

import json
from pathlib import Path

import backbones.distributed as distributed
from backbones.types import InputError
from experiments.base import Experiment

STORED_IN_THE_STATE = ("data", "model", "optim", "clip", "ema", "seed")
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
        return Experiment.from_json(json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged, or of another version of this program: {error!r}") from error


def write_experiment(run_dir: Path, experiment: Experiment) -> None:
    """Write `config.json` on rank 0."""
    if distributed.is_main():
        (run_dir / "config.json").write_text(json.dumps(experiment.to_json(), indent=2) + "\n")


def prepare_run_dir(run_dir: Path, experiment: Experiment, *, resume: bool) -> None:
    """Make the folder of a new run, or make sure that it holds the run that the experiment goes on with.

    Raises:
        InputError: the folder holds another run, or one that is not to be resumed, or none to resume; or it cannot be
            made.
    """
    stored = read_experiment(run_dir)
    if resume:
        if stored is None:
            raise InputError(f"no run to resume in {run_dir}; start it without --resume, or name another --run-dir")
        for name in STORED_IN_THE_STATE:
            was, now = getattr(stored, name), getattr(experiment, name)
            if was != now:
                raise InputError(f"the run in {run_dir} cannot go on as another one: {name} was {was}, not {now}")
    elif any(path.is_file() for path in run_dir.rglob("*")):
        raise InputError(f"{run_dir} holds a run already; go on with it by --resume, or name another --run-dir")
    distributed.barrier()  # all ranks have looked before rank 0 writes

    def make_folders() -> None:
        try:
            (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write into {run_dir}: {error.strerror}; name another --run-dir") from error

    distributed.on_main(make_folders)
