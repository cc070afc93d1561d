"""A sweep and its members, and the folder that holds them.

sweep.json           the experiment, the axes, the members, and how they are run
00-lr-0.001-seed-0/  the run of a member, as any other run; and diverged.txt, log.txt and scores.json, see jobs.py
table.md table.csv   their results; sweep.png shows them
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from backbones.component import Use
from backbones.data import Dataset
from backbones.errors import InputError
from backbones.experiment import VERSION, Experiment, make_dataset
from backbones.models import with_pretrained
from backbones.models.state_dict import StateDict
from backbones.run.config import flatten, parse_experiment
from backbones.run.files import read_json, write_json
from backbones.run.run_dir import CONFIG, new_run_dir
from backbones.run.start_weights import read_weights
from backbones.run.sweep.axes import Axis, Combination
from backbones.torch_settings import torch_settings_kept

SWEEPS = Path("sweeps")

SWEEP = "sweep.json"

How = Literal["sequence", "processes", "vmap"]


class Member(NamedTuple):
    """One run of a sweep."""

    name: str
    """Of its folder."""
    values: dict[str, Any]
    """Field -> value, of the options that are varied."""
    experiment: Experiment
    num_steps: int


class Sweep(NamedTuple):
    """What is run."""

    experiment: Experiment
    """The experiment whose options the members vary."""
    axes: dict[str, list[str]]
    """Field -> values, or the two ends of a range, as on the command line."""
    halving: int | None
    """At each rung of successive halving one in this many members goes on; None where all run to their end."""
    members: list[Member]

    def rungs(self) -> list[int]:
        """How many members start each rung; there is one where all run to their end.

        Rung r of R, counted from 1, ends at num_steps / halving^(R - r).
        """
        sizes = [len(self.members)]
        while self.halving is not None and sizes[-1] > 1:
            sizes.append(max(1, sizes[-1] // self.halving))
        return sizes

    def rung_ends(self, member: Member) -> list[int]:
        """The last step of a member in each rung."""
        last = len(self.rungs()) - 1
        return [member.num_steps // (self.halving or 1) ** (last - rung) for rung in range(last + 1)]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        members = [{**each._asdict(), "experiment": each.experiment.to_json()} for each in self.members]
        values = {**self._asdict(), "experiment": self.experiment.to_json(), "members": members}
        return json.loads(json.dumps({"version": VERSION, **values}))  # tuples become lists


def make_sweep(
    experiment: Experiment,
    axes: Sequence[Axis],
    members: Sequence[tuple[Combination, Experiment]],
    *,
    halving: int | None = None,
) -> Sweep:
    """A sweep whose members can be run, as far as that is known without training; their data sets are read for it.

    Args:
        experiment: that of which the members are variants.
        axes: what is varied.
        members: the values of each, and its experiment.
        halving: see `Sweep`.

    Raises:
        InputError: a member cannot be run, two are the same, or the first rung of halving has no step.
    """
    made: list[Member] = []
    datasets: dict[Use, Dataset] = {}
    weights: dict[str, StateDict] = {}
    names: dict[str, str] = {}  # experiment, as JSON -> member
    width = len(str(len(members) - 1))
    for i, (combination, of_member) in enumerate(members):
        words = [f"{field.rpartition('.')[2]}-{value}" for field, value in combination.items()]
        name = re.sub(r"[^\w.+-]+", "_", "-".join([f"{i:0{width}}", *words]))[:100]
        if (same := names.setdefault(json.dumps(of_member.to_json()), name)) != name:
            raise InputError(f"{name} would be the same run as {same}; give each value once")
        try:
            num_steps = _num_steps(of_member, datasets, weights)
        except InputError as error:
            raise InputError(f"{name} cannot be run: {error}") from error
        flat = flatten(of_member)
        values = {field: flat[field] for field in combination}
        made.append(Member(name, values, of_member, num_steps))
    sweep = Sweep(experiment, {axis.field: list(axis.values) for axis in axes}, halving, made)
    for member in made:
        if sweep.rung_ends(member)[0] < 1:
            raise InputError(
                f"--halving {halving} of {len(made)} members has {len(sweep.rungs())} rungs, and the first of them "
                f"would end before the first of {member.num_steps} steps; give more --steps"
            )
    return sweep


def _num_steps(experiment: Experiment, datasets: dict[Use, Dataset], weights: dict[str, StateDict]) -> int:
    """Number of steps of a member, whose train step is made as a check; `datasets` and `weights` keep what was read."""
    with torch_settings_kept():
        if experiment.data not in datasets:
            datasets[experiment.data] = make_dataset(experiment.data, experiment.init_device())
        dataset = datasets[experiment.data]
        if (source := experiment.init_from) is not None:
            weights[source] = weights.get(source) or read_weights(source)
            with_pretrained(experiment.make_model(dataset.info), weights[source], dataset.info.image_shape)
        experiment.make_pure_step(dataset)
        return experiment.num_steps(dataset)


class Plan(NamedTuple):
    """How a sweep is run: the same when it goes on, since the number of threads decides how sums are rounded."""

    how: How | None = None
    """None until it is chosen."""
    workers: int | None = None
    """Processes at a time; None for a number that suits the machine."""


def read_sweep(folder: Path) -> tuple[Sweep, Plan]:
    """The sweep in a folder, and how it is run.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = folder / SWEEP
    values = read_json(path)
    try:
        experiment = parse_experiment(path, values["experiment"])
        members = [
            Member(**{**each, "experiment": parse_experiment(path, each["experiment"])}) for each in values["members"]
        ]
        return Sweep(experiment, values["axes"], values["halving"], members), Plan(**values["plan"])
    except (TypeError, KeyError) as error:
        raise InputError(f"{path} is not a sweep of this program: {error!r}; start a new one") from error


def write_sweep(folder: Path, sweep: Sweep, plan: Plan) -> None:
    """Write `sweep.json`."""
    write_json(folder / SWEEP, {**sweep.to_json(), "plan": plan._asdict()})


def find_folder(sweep: Sweep, folder: Path | None) -> Path:
    """The folder of a sweep: the one that is asked for, else that which holds it already, else a new one.

    Raises:
        InputError: the folder that is asked for holds something else.
    """
    if folder is None:
        holding = [path.parent for path in sorted(SWEEPS.glob(f"*/{SWEEP}")) if _holds(path, sweep)]
        return holding[0] if holding else new_run_dir(sweep.experiment.name, SWEEPS)
    if (folder / SWEEP).exists() and not _holds(folder / SWEEP, sweep):
        raise InputError(f"{folder} holds another sweep; name another --sweep-dir, or --resume {folder} alone")
    if (folder / CONFIG).exists():
        raise InputError(f"{folder} holds a run; name another --sweep-dir")
    return folder


def _holds(path: Path, sweep: Sweep) -> bool:
    wanted = sweep.to_json()
    with suppress(InputError):  # it is damaged, or of another version
        if read_json(path).get("axes") == wanted["axes"]:  # else what may be broken by now is not imported
            return read_sweep(path.parent)[0].to_json() == wanted
    return False
