"""Every experiment by name. Compose your own with `dataclasses.replace` and hand it to `train.main`."""

from experiments.base import Experiment as Experiment
from experiments.digits import digits_vit_tiny

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in (digits_vit_tiny,)}

DEFAULT = digits_vit_tiny.name
