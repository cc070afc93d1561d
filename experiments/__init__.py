"""Every experiment by name; `train.py` runs the first where none is named. Each file is headed by its claims."""

import re
from collections.abc import Iterable

from backbones.experiment import Experiment
from experiments import digits, fine_tuning, image_folder, optimizers, plus, reference, speedrun

_MODULES = (digits, reference, plus, speedrun, fine_tuning, image_folder, optimizers)

EXPERIMENTS: dict[str, Experiment] = {
    value.name: value for module in _MODULES for value in vars(module).values() if isinstance(value, Experiment)
} | optimizers.OPTIMIZER_EXPERIMENTS


def read_claims(docstring: str | None, experiments: Iterable[str]) -> dict[str, str]:
    """Name -> claim, of the rows of a table in a module's docstring: the name of an experiment, spaces, its claim."""
    rows = [re.fullmatch(r"(\S+) {2,}(.+)", line) for line in (docstring or "").splitlines()]
    claims = {row[1]: re.sub(" +", " ", row[2]) for row in rows if row}
    return {name: claims[name] for name in experiments if name in claims}


CLAIMS: dict[str, str] = {
    name: claim for module in _MODULES for name, claim in read_claims(module.__doc__, EXPERIMENTS).items()
}
"""Name -> accuracy, after how many steps or epochs, and mostly the time, of those that were measured."""
