"""Groups of runs that differ in nothing but their seed, and how the groups differ."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from backbones.experiment import COMPONENTS, Experiment
from backbones.run.config import flatten
from backbones.run.report.runs import Run


class Statistic(NamedTuple):
    """A number over the seeds of a group."""

    mean: float
    std: float | None
    """Sample standard deviation; None for one seed."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one experiment, each with another seed."""

    runs: tuple[Run, ...]
    """In the order of their seeds."""
    label: str = ""
    """Name of the experiment, with what sets it apart from others of that name."""

    @property
    def experiment(self) -> Experiment:
        """That of the first seed."""
        return self.runs[0].experiment

    @cached_property
    def counted(self) -> tuple[Run, ...]:
        """The runs that make the statistics: those that are finished, or all where none is."""
        return tuple(run for run in self.runs if run.finished) or self.runs

    @property
    def finished(self) -> bool:
        """Whether the statistics are those of finished runs."""
        return self.counted[0].finished

    def statistic(self, name: str) -> Statistic | None:
        """Of a number of the results, over the runs that have it; None if there are none."""
        values = self._values(name)
        if not values:
            return None
        return Statistic(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def mean(self, name: str) -> float | None:
        """The mean of a number of the results."""
        found = self.statistic(name)
        return found and found.mean

    def largest(self, name: str) -> float | None:
        """The largest of a number of the results."""
        return max(self._values(name), default=None)

    def _values(self, name: str) -> list[float]:
        return [value for run in self.counted if (value := run.number(name)) is not None]

    def mean_points(self, split: str, name: str) -> dict[int, float]:
        """Step -> mean of a metric, at the steps that all counted runs have."""
        points = [run.points(split, name) for run in self.counted]
        steps = sorted(set.intersection(*(set(each) for each in points)))
        return {step: statistics.fmean(each[step] for each in points) for step in steps}


def group_runs(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Groups of runs whose experiments differ in nothing but the seed, and a line on each run that repeats a seed.

    The highest mean top-1 comes first. Of two runs with one seed the finished one is taken, or the first.
    """
    grouped: dict[Experiment, dict[int, Run]] = {}
    notes = []
    for run in sorted(runs, key=lambda run: not run.finished):
        experiment = run.experiment
        pass_over = () if experiment.rewind else experiment.pass_over  # steps that --rewind added are no setting
        seeds = grouped.setdefault(dataclasses.replace(experiment, seed=0, pass_over=pass_over), {})
        if (first := seeds.setdefault(run.experiment.seed, run)) is not run:
            notes.append(f"{run.folder} is left out: it has the experiment and the seed of {first.folder}")
    groups = [Group(tuple(seeds[seed] for seed in sorted(seeds))) for seeds in grouped.values()]
    return _with_labels(sorted(groups, key=_rank)), notes


def _rank(group: Group) -> tuple[bool, float, str]:
    top1 = group.mean("top1")
    return top1 is None, -(top1 or 0.0), group.experiment.name


def _with_labels(groups: list[Group]) -> list[Group]:
    namesakes: dict[str, list[Group]] = {}
    for group in groups:
        namesakes.setdefault(group.experiment.name, []).append(group)
    differing = {name: iter(differences(each)) for name, each in namesakes.items()}
    labelled = []
    for group in groups:
        name = group.experiment.name
        options = ", ".join(
            str(value) if option in COMPONENTS else f"{option.rpartition('.')[2]} {value}"
            for option, value in next(differing[name]).items()
        )
        labelled.append(dataclasses.replace(group, label=f"{name} ({options})" if options else name))
    return labelled


def differences(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """For each group the value of each option in which they differ; seeds and names aside.

    An option that some groups do not have, since their component is another one, counts if the others differ in it, or
    have another value than its default.
    """
    flat = [flatten(group.experiment) for group in groups]
    defaults = [_defaults(group.experiment) for group in groups]
    order = list(flat[0])
    options = sorted(
        {option: None for each in flat for option in each}, key=lambda name: order.index(name.partition(".")[0])
    )

    def differs(option: str) -> bool:
        pairs = [
            (each[option], default.get(option)) for each, default in zip(flat, defaults, strict=True) if option in each
        ]
        values = {json.dumps(value) for value, _ in pairs}
        is_set = any(value != default for value, default in pairs)
        return len(values) > 1 or (len(pairs) < len(flat) and is_set)

    passed_over = ("pass_over",) if any(group.experiment.rewind for group in groups) else ()  # by going back
    shown = [option for option in options if option not in ("name", "seed", *passed_over) and differs(option)]
    return [{option: each[option] for option in shown if option in each} for each in flat]


def _defaults(experiment: Experiment) -> dict[str, Any]:
    """`COMPONENT.OPTION` -> its default, as plain data."""
    defaults = {
        f"{kind}.{option}": value for kind in COMPONENTS for option, value in getattr(experiment, kind).defaults.items()
    }
    return json.loads(json.dumps(defaults, default=repr))
