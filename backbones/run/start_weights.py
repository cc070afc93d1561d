"""The weights that a new run starts from, where they are not drawn."""

import os
from dataclasses import replace
from pathlib import Path

import backbones.distributed as distributed
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.models import LIBRARIES, Model, with_pretrained
from backbones.models.base import ImageShape
from backbones.models.state_dict import StateDict, read_state_dict
from backbones.run.checkpoint import find_checkpoint, read_checkpoint, saved_weights


def with_start_weights(model: Model, experiment: Experiment, image_shape: ImageShape) -> Model:
    """The model of an experiment, which starts from the weights that `init_from` names.

    Raises:
        InputError: there are no such weights, or they do not fit.
    """
    if experiment.init_from is None:
        warn_of_weights(experiment)
        return model
    model, notes = with_pretrained(model, read_weights(experiment.init_from), image_shape)
    distributed.print0("; ".join([f"starts from the weights of {experiment.init_from}", *notes]))
    return model


def read_weights(source: str) -> StateDict:
    """Name -> tensor of `params` and `model_state`, from a run folder (its latest checkpoint), a checkpoint, or a file.

    Raises:
        InputError: there is no such thing, or it is damaged.
    """
    path = Path(os.path.expanduser(source))

    def read() -> StateDict:
        if not path.exists():
            raise InputError(
                f"there is no {path} to start from; name a run, one of its checkpoints, or a file of weights"
            )
        if path.is_file():
            return read_state_dict(path)
        params, model_state = saved_weights(read_checkpoint(find_checkpoint(path)).arrays)
        return {**params, **model_state}

    return distributed.on_main(read)


def warn_of_weights(experiment: Experiment) -> None:
    """Print a warning where the name of a model of timm says which weights it has, and these are not read."""
    if experiment.model.function == LIBRARIES["timm"] and experiment.model.values["pretrained"] is None:
        name, _, weights = experiment.model.label.partition(".")
        if weights:
            distributed.warn0(
                f"the model is {name} without the weights {weights}; --model.pretrained FILE reads weights"
            )


def without_pretrained(experiment: Experiment) -> Experiment:
    """The experiment with a model that reads no file of weights, for a state that is restored from a checkpoint."""
    if not experiment.names_pretrained():
        return experiment
    return replace(experiment, model=experiment.model.replace(pretrained=None))
