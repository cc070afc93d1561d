"""A checkpoint of a run as a trained model, which needs no data set.

B images, C channels, H and W height and width, K classes.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import backbones.machine as machine
import backbones.tree as tree
from backbones.augment import Normalize, make_normalize
from backbones.data import DataInfo
from backbones.errors import InputError, shorten
from backbones.experiment import Experiment
from backbones.models import Model, with_autocast
from backbones.run.checkpoint import Checkpoint, Which, find_checkpoint, read_checkpoint, saved_weights
from backbones.run.config import parse_experiment
from backbones.tta import Tta, average_views
from backbones.types import ModelState, Params


class TrainedModel(NamedTuple):
    """A model, its weights and what it must know of images; `images` below are uint8 or floating, in [0, 255]."""

    model: Model
    params: Params
    model_state: ModelState
    normalize: Normalize
    info: DataInfo
    """Of the images that it was trained on."""
    device: torch.device

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Parameters and model state by name, as in a file of weights."""
        return {**self.params, **self.model_state}

    def apply(self, normalized: Tensor) -> Tensor:
        """Normalized images [B, C, H, W] on the device -> logits [B, K]."""
        return self.model.apply(self.params, self.model_state, normalized, train=False)[0]

    def logits(self, images: Tensor, tta: Tta = "none") -> Tensor:
        """Images [B, C, H, W] -> logits [B, K]."""
        return average_views(self.apply, self.normalize(images.to(self.device)), tta)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, C, H, W] -> its named maps; see `backbones.models.base.Features`."""
        return self.model.features(self.params, self.model_state, self.normalize(images.to(self.device)))


def read_trained(run: Path, which: Which = "latest") -> tuple[Checkpoint, Experiment]:
    """A checkpoint and its experiment; `run` is a run folder, or the checkpoint itself.

    Raises:
        InputError: there is no such checkpoint, it is corrupt, or this version has no such experiment.
    """
    checkpoint = read_checkpoint(find_checkpoint(run, which))
    return checkpoint, parse_experiment(checkpoint.path, checkpoint.manifest.experiment)


def load_model(checkpoint: Checkpoint, experiment: Experiment, device: torch.device) -> TrainedModel:
    """The model of a checkpoint, with averaged weights if the run keeps them, in the precision of the experiment.

    Raises:
        InputError: the model has other leaves than the checkpoint: its code has changed.
    """
    info = checkpoint.manifest.info
    model = with_autocast(experiment.make_model(info), machine.autocast_dtype(experiment.precision, device))
    params, model_state = tree.map(lambda leaf: leaf.to(device), saved_weights(checkpoint.arrays))
    saved = {name: tuple(leaf.shape) for name, leaf in {**params, **model_state}.items()}
    leaves = [*model.skeleton.named_parameters(), *model.skeleton.named_buffers()]
    wanted = {name: tuple(leaf.shape) for name, leaf in leaves}
    if saved != wanted:
        others = sorted(name for name in {**saved, **wanted} if saved.get(name) != wanted.get(name))
        raise InputError(
            f"{checkpoint.path} is of another {experiment.model.name} than the code has now: of {shorten(others)} the "
            "shapes differ, or there is one only; use the code that it was trained with"
        )
    return TrainedModel(model, params, model_state, make_normalize(info.mean, info.std, device), info, device)
