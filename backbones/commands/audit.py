"""`backbones audit RUN [A:B]`: train from one checkpoint of a run to another again, and compare every leaf."""

import re
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

import backbones.distributed as distributed
from backbones.commands.checkpoint import describe_difference
from backbones.commands.options import DataRoot, RunPath
from backbones.errors import InputError
from backbones.experiment import Experiment, make_dataset
from backbones.run.checkpoint import Checkpoint, find_checkpoint, join_steps, list_steps, read_checkpoint
from backbones.run.checkpoint.arrays import EVALUATED, Arrays, describe_leaf, load_arrays, to_arrays
from backbones.run.config import parse_experiment
from backbones.run.provenance import (
    describe_environment,
    list_environment_changes,
    list_resumes,
    list_trained,
    read_starts,
    recorded_threads,
)
from backbones.run.start_weights import without_pretrained


def audit(
    run: RunPath,
    steps: Annotated[Positional[str | None], tyro.conf.arg(metavar="[A:B]")] = None,
    /,
    *,
    data_root: DataRoot = None,
) -> bool:
    """Repeat the training from one checkpoint of a run to a later one, and compare every leaf with it bit for bit.

    The run folder stays as it is. A run of several processes is audited by as many: torchrun --nproc_per_node N
    -m backbones audit RUN. If a leaf differs, it prints which and by how much, and the exit code is 1.

    Args:
        run: a run folder.
        steps: the steps of the two checkpoints, as 300:350; None for the two newest.
        data_root: where the data set is; None for where it was when the run was trained.

    Raises:
        InputError: there are no such checkpoints, or one is corrupt.
    """
    before, after = distributed.on_main(lambda: [read_checkpoint(path) for path in find_pair(run, steps)])
    first, last = before.manifest.step, after.manifest.step
    starts = distributed.on_main(lambda: [each for each in read_starts(run) if each["step"] < last])
    experiment = parse_experiment(after.path, after.manifest.experiment)
    with recorded_threads(starts):
        now, environment = train_again(experiment, before, after, data_root)
    if not distributed.is_main():
        return True
    different = [name for name, leaf in after.manifest.leaves.items() if describe_leaf(now[name]) != leaf]
    verdict = f"{len(different)} of {len(now)} leaves differ" if different else f"OK: all {len(now)} leaves are equal"
    print(f"{verdict}: steps {first + 1} to {last}, done again from {before.path}, compared with {after.path}")
    width = max(map(len, different), default=0)
    for name in different:
        print(f"{name:{width}s} {describe_difference(after.arrays[name], now[name])}")
    trained = list_trained(starts, first, last)
    for line in list_resumes("the run", trained, after=first):
        print(line)
    for line in list_environment_changes(trained, environment):
        print(line)
    return not different


def find_pair(run_dir: Path, steps: str | None) -> tuple[Path, Path]:
    """The folders of two checkpoints of a run; see `audit`.

    Raises:
        InputError: there are none.
    """
    folder = find_checkpoint(run_dir).parent
    saved = list_steps(folder)
    known = f"{folder} has those of the steps {join_steps(saved)}"
    if steps is None:
        if len(saved) < 2:
            raise InputError(f"wanted two checkpoints; {known}: --save-every and --keep say how many a run has")
        steps = f"{saved[-2]}:{saved[-1]}"
    match = re.fullmatch(r"(\d+):(\d+)", steps)
    first, last = map(int, match.groups()) if match else (0, 0)
    if first >= last:
        raise InputError(f"got {steps}, wanted the steps A:B of two checkpoints with A < B; {known}")
    for step in (first, last):
        if step not in saved:
            raise InputError(f"there is no checkpoint of step {step}; {known}")
    return folder / str(first), folder / str(last)


def train_again(
    experiment: Experiment, before: Checkpoint, after: Checkpoint, data_root: str | None = None
) -> tuple[Arrays, dict]:
    """The leaves of the state to which an experiment comes from an earlier checkpoint, and the environment."""
    device = experiment.init_device()
    with distributed.long_timeout():
        dataset = make_dataset(experiment.data, device, data_root)
    environment = describe_environment(experiment, dataset, device)  # now: what compiles imports more packages
    program = experiment.make(dataset, without_pretrained(experiment).make_model(dataset.info))
    state = load_arrays(program.state, before.arrays)
    steps = range(before.manifest.step + 1, after.manifest.step + 1)
    for step in distributed.progress(steps, unit="step", leave=False):
        if step in experiment.pass_over:
            state.step.add_(1)
        else:
            state, _ = program.train_step(state, program.batches(step - 1))
    is_averaged = any(name.startswith(f"{EVALUATED}/") for name in after.arrays)
    weights = program.weights_of(state) if is_averaged else None
    return to_arrays(state, weights), environment
