"""A model with weights, as if it came from a checkpoint."""

import torch

import backbones.random as random
from backbones.augment import make_normalize
from backbones.data import DataInfo
from backbones.models import Model
from backbones.run.analysis.trained_model import TrainedModel
from backbones.types import CPU


def make_trained(model: Model, info: DataInfo) -> TrainedModel:
    """Initial weights, with some noise so that none are equal and no class is much likelier than others."""
    params, model_state = model.init(random.generator(0))
    noise = random.generator(1)
    for leaf in params.values():
        leaf.add_(0.02 * torch.randn(leaf.shape, generator=noise))
    return TrainedModel(model, params, model_state, make_normalize(info.mean, info.std, CPU), info, CPU)
