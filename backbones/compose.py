"""Functions from an experiment to another one: the same training on other data, shorter, or with an average.

shorter(on(cifar10_resnet18, fashion_mnist), 0.1)

Everything else is `dataclasses.replace(experiment, ...)`, and `experiment.optim.replace(lr=...)` for a component.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from backbones.component import use
from backbones.data import Dataset
from backbones.experiment import Experiment
from backbones.ranges import Positive, Probability, checked


def on(experiment: Experiment, data: Callable[..., Dataset], **options: Any) -> Experiment:
    """The same training on another data set, whose name takes the place of the old one's in `experiment.name`.

    Args:
        experiment: what to change.
        data: a data set, or any function that makes one.
        options: of that function.

    Raises:
        InputError: the function has no such option.
    """
    new = use(data, **options)
    rest = experiment.name.removeprefix(f"{experiment.data.name}-")
    return dataclasses.replace(experiment, data=new, name=f"{new.name}-{rest}")


@checked
def shorter(experiment: Experiment, factor: Positive) -> Experiment:
    """The same training in `factor` of its steps, or longer for a factor above 1.

    Whatever is counted in steps changes with it: the warm-up, and the steps between evaluations and checkpoints. So
    the learning rate falls in the same way.
    """

    def scaled(steps: int) -> int:
        return max(1, round(factor * steps))

    schedule, eval_every = experiment.schedule, scaled(experiment.eval_every)
    ratio, rest = divmod(experiment.save_every, experiment.eval_every)
    save_every = scaled(experiment.save_every) if rest else ratio * eval_every  # so that what is saved is evaluated
    if schedule.values.get("warmup_steps"):
        schedule = schedule.replace(warmup_steps=scaled(schedule.values["warmup_steps"]))
    return dataclasses.replace(
        experiment,
        schedule=schedule,
        steps=experiment.steps and scaled(experiment.steps),
        epochs=experiment.epochs and factor * experiment.epochs,
        eval_every=eval_every,
        save_every=save_every,
        keep_every=experiment.keep_every and experiment.keep_every // experiment.save_every * save_every,
    )


def with_ema(experiment: Experiment, decay: Probability = 0.999) -> Experiment:
    """The same training with an exponential moving average of the parameters, which is evaluated in their place."""
    return dataclasses.replace(experiment, ema=decay)
