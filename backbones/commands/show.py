"""What experiments there are, and what is in one: `train.py --list` and `train.py --show NAME`."""

import dataclasses
import re
from collections.abc import Mapping

from backbones.component import Use
from backbones.experiment import Experiment
from backbones.run.files import json_text


def list_experiments(experiments: Mapping[str, Experiment], claims: Mapping[str, str]) -> str:
    """One line for each experiment: its name, and what it is known to reach.

    Args:
        experiments: by name.
        claims: name -> what was measured.
    """
    width = max(map(len, experiments), default=0)
    return "\n".join(f"{name:{width}}  {claims.get(name, 'not measured yet')}" for name in experiments)


def to_python(experiment: Experiment) -> str:
    """A module that defines this experiment, by those fields and options that have not their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(Experiment)}
    names: dict[str, str] = {}  # import path -> the name that it has here
    lines = []
    for field, value in vars(experiment).items():
        if value == defaults[field]:
            continue
        if isinstance(value, Use):
            name = value.path.partition(":")[2]
            names.setdefault(value.path, f"{name}_of_{field}" if name in names.values() else name)
            lines.append(f"    {field}={_to_python(value, names[value.path])},")
        else:
            lines.append(f"    {field}={value!r},")
    imports = ["from backbones.experiment import Experiment, use", *(_import(*item) for item in names.items())]
    variable = re.sub(r"\W|^(?=\d)", "_", experiment.name)
    return "\n".join([*sorted(imports), "", f"{variable} = Experiment(", *lines, ")", ""])


def _import(path: str, name: str) -> str:
    module, _, original = path.partition(":")
    return f"from {module} import {original}" + (f" as {name}" if name != original else "")


def _to_python(component: Use, name: str) -> str:
    defaults = component.defaults
    options = [f"{option}={value!r}" for option, value in component.options.items() if value != defaults[option]]
    return f"use({', '.join([name, *options])})"


def show(experiment: Experiment) -> str:
    """The experiment as Python to paste, and as the JSON of `config.json`."""
    return f"{to_python(experiment)}\n{json_text(experiment.to_json(), indent=2)}"
