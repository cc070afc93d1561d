"""Every experiment by name; `train.py` runs the first where none is named. Each file is headed by its claims."""

from backbones.commands.show import read_claims
from backbones.experiment import Experiment
from experiments import digits, fine_tuning, image_folder, optimizers, plus, reference, speedrun

_MODULES = (digits, reference, plus, speedrun, fine_tuning, image_folder, optimizers)

EXPERIMENTS: dict[str, Experiment] = {
    value.name: value for module in _MODULES for value in vars(module).values() if isinstance(value, Experiment)
} | optimizers.OPTIMIZER_EXPERIMENTS

CLAIMS: dict[str, str] = {
    name: claim for module in _MODULES for name, claim in read_claims(module.__doc__, EXPERIMENTS).items()
}
"""Name -> accuracy, and after how many steps or epochs, of those that were measured."""
