"""The experiment of a run as a file, and what differs between two experiments."""

from pathlib import Path
from typing import Any

from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.run.files import read_json, write_json
from backbones.run.run_dir import CONFIG


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
        raise InputError(f"cannot read the experiment of {source}: {error}") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{source} is not an experiment of this program: {error!r}; start a new run") from error


def write_config(run_dir: Path, experiment: Experiment) -> None:
    """Write the `config.json` of a run."""
    write_json(run_dir / CONFIG, experiment.to_json())


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
    return flat
