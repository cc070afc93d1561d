"""What a run may be resumed with: its configuration, and which changes of it are possible."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.run.checkpoint import CorruptCheckpoint, Which, find_checkpoint, list_steps, read_manifest
from backbones.run.config import list_changes, parse_experiment
from backbones.run.files import read_json
from backbones.run.provenance import read_starts
from backbones.run.run_dir import CHECKPOINTS, CONFIG

IN_THE_STATE = (
    "optim", "clip", "ema", "seed", "init_from", "model.pretrained", "freeze", "train_only", "layer_decay", "trunk_lr",
    "batch_size",
)  # fmt: skip
"""Fields of an experiment that a checkpoint holds, so that a new value would have no effect on a resumed run; and the
seed and the batch size, which with the step count say which samples come next."""

IN_THE_STEPS = (
    "augment", "model", "schedule", "loss", "accumulate", "weight_decay_mask", "class_weights",
    "sampling", "label_smoothing", "precision", "nonfinite", "spike", "rewind", "pass_over", "sync_batch_norm",
)  # fmt: skip
"""Fields that act in the steps of a run, so that a new value would have no effect on one without steps left."""

IN_THE_RESULT = (*IN_THE_STEPS, "data", "steps", "epochs", "tta", "eval_batch_size")
"""Fields of a finished run whose change makes it train on, be evaluated again, or fail."""


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
    steps = list_steps(run_dir / CHECKPOINTS)
    if isinstance(resume, Path) or (steps and resume not in ("auto", "latest")):
        paths = [find_checkpoint(run_dir, resume)]
    else:
        paths = [run_dir / CHECKPOINTS / str(step) for step in reversed(steps)]
    for path in paths:
        try:
            return path, read_manifest(path).experiment
        except CorruptCheckpoint:  # reported when it is restored
            if isinstance(resume, Path):
                raise
    return None


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
        if resume == "auto" and not list_steps(run_dir / CHECKPOINTS) and starts and starts[0].get("step"):
            raise InputError(
                f"the run in {run_dir} began at a later step than 0, and has no checkpoint; delete the folder, and "
                "start again, or from a checkpoint elsewhere with --resume PATH"
            )
        # of the checkpoint, whose hashes are checked: a `config.json` may have been edited or damaged
        stored = _checkpoint_config(run_dir, resume) or config_to_resume(run_dir, resume)
        if stored is not None:
            changes = list_changes(parse_experiment(*stored), experiment)
            if refused := _lines_of(changes, IN_THE_STATE):
                message = f"the run in {run_dir} cannot be resumed with other values of what its checkpoint depends on"
                raise InputError("\n  ".join([f"{message}; --init-from starts a new run from its weights:", *refused]))
        elif resume != "auto":
            raise InputError(f"no run to resume in {run_dir}; start it without --resume, or name its --run-dir")
    is_taken = (run_dir / CONFIG).exists() or bool(list_steps(run_dir / CHECKPOINTS))
    if is_taken and (resume is None or isinstance(resume, Path)):
        raise InputError(f"{run_dir} holds a run already; continue it with --resume, or name another --run-dir")
    return changes


def changes_result(changes: dict[str, str]) -> bool:
    """Whether changes of a finished run would give another result, or need more steps for that."""
    return bool(_lines_of(changes, IN_THE_RESULT))


def check_steps_left(changes: dict[str, str], run_dir: Path) -> None:
    """Raise InputError if changes of a run that has no steps left would have no effect."""
    if ineffective := _lines_of(changes, IN_THE_STEPS):
        message = f"the run in {run_dir} has no steps left, so these changes would have no effect:"
        raise InputError("\n  ".join([message, *ineffective]) + "\ngive it more --steps, or leave them out")


def _lines_of(changes: dict[str, str], fields: Collection[str]) -> list[str]:
    """A line for each change of one of these fields, or of an option of one."""
    return [
        f"{name}: {change}" for name, change in changes.items() if name in fields or name.partition(".")[0] in fields
    ]
