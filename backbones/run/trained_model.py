"""A model with the weights of a checkpoint, which needs no data set.

B images, C channels, H and W height and width, K classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import backbones.machine as machine
import backbones.tree as tree
from backbones.augment import Normalize, make_normalize
from backbones.data import DataInfo
from backbones.experiment import Experiment
from backbones.models import Model, with_autocast
from backbones.run.checkpoint import Checkpoint, weights_of
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

    def logits(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, K], without test-time augmentation."""
        images = self.normalize(images.to(self.device))
        return self.model.apply(self.params, self.model_state, images, train=False)[0]

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, C, H, W] -> its named maps; see `backbones.models.base.Features`."""
        return self.model.features(self.params, self.model_state, self.normalize(images.to(self.device)))


def load_model(checkpoint: Checkpoint, experiment: Experiment, device: torch.device) -> TrainedModel:
    """The model of a checkpoint, with averaged weights if the run keeps them, in the precision of the experiment."""
    info = checkpoint.manifest.info
    precision = machine.choose_precision(experiment.precision, device)
    model = with_autocast(experiment.make_model(info), getattr(torch, precision))
    params, model_state = tree.map(lambda leaf: leaf.to(device), weights_of(checkpoint.arrays))
    return TrainedModel(model, params, model_state, make_normalize(info.mean, info.std, device), info, device)
