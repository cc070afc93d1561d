"""Features of the images of a data set: what comes out of a layer of a trained model, a vector for each image.

B and N images, C channels, H and W height and width, D dimensions of a vector, T tokens.
"""

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from backbones.data import DataInfo, Dataset, Source, eval_batches
from backbones.errors import InputError
from backbones.models.base import Backbone, apply_head
from backbones.run.analysis.feature_table import FeatureTable
from backbones.run.analysis.trained_model import TrainedModel


def to_vectors(features: Tensor) -> Tensor:
    """[B, D] as it is, maps [B, D, H, W] averaged over positions, tokens [B, T, D] over tokens; [B, D] float32."""
    features = features.to(torch.float32)
    return features if features.ndim == 2 else features.mean(dim=1 if features.ndim == 3 else (2, 3))


@torch.no_grad()
def layer_shapes(trained: TrainedModel) -> dict[str, tuple[int, ...]]:
    """Layer -> the shape of its output for one image, as [C, H, W]."""
    blank = torch.zeros(1, *trained.info.image_shape)
    return {name: tuple(x.shape[1:]) for name, x in trained.features(blank).items()}


def check_image_shape(got: DataInfo, wanted: DataInfo, name: str) -> None:
    """Check the images of a data set called `name` against those that a model was trained on.

    Raises:
        InputError: they are of another size, or have other channels and are not grey.
    """
    if got.image_shape[1:] != wanted.image_shape[1:] or got.image_shape[0] not in (1, wanted.image_shape[0]):
        raise InputError(
            f"{name} has images of {got.image_shape}, and the model takes {wanted.image_shape}; wanted are images of "
            "that height and width, with as many channels or grey"
        )


def extract(
    trained: TrainedModel, dataset: Dataset, layer: str, *, batch_size: int, about: dict[str, str]
) -> FeatureTable:
    """The features of all images of both splits, without augmentation; only one batch of maps is held at a time.

    Args:
        trained: the model.
        dataset: images that fit it; grey ones are repeated in all of its channels.
        layer: a name in `model.features`.
        batch_size: images at a time.
        about: of the table.

    Raises:
        InputError: a feature is not finite.
    """
    splits = [_extract(trained, source, split, layer, batch_size) for split, source in dataset._asdict().items()]
    table = FeatureTable(about, **{name: np.concatenate([each[name] for each in splits]) for name in splits[0]})
    if not np.isfinite(table.features).all():
        raise InputError("features are NaN or infinite, as of a training that diverged; choose an earlier --checkpoint")
    return table


@torch.no_grad()
def _extract(trained: TrainedModel, source: Source, split: str, layer: str, batch_size: int) -> dict[str, np.ndarray]:
    rows = []
    batches = eval_batches(source, batch_size=batch_size, device=trained.device)
    for batch in tqdm(batches, total=-(-source.size // batch_size), desc=split, disable=None):
        images = batch.images[batch.weight > 0].expand(-1, trained.info.image_shape[0], -1, -1)
        features = trained.features(images)
        if isinstance(trained.model.skeleton, Backbone):
            pooled = features["pooled"].to(torch.float32)
            logits = apply_head(trained.model, trained.params, trained.model_state, pooled)
        else:  # what follows its head is not known
            logits = trained.logits(images)
        probability, predicted = logits.to(torch.float32).softmax(dim=1).max(dim=1)
        rows.append([each.cpu() for each in (predicted, probability, to_vectors(features[layer]))])
    predicted, probability, vectors = (torch.cat(parts) for parts in zip(*rows, strict=True))
    labels = source.labels.cpu().numpy()
    return {
        "split": np.full(source.size, split),
        "index": np.arange(source.size),
        "file_name": np.array([source.file_name(i) if source.file_name else "" for i in range(source.size)]),
        "label": labels,
        "class_name": np.array(source.info.class_names)[labels],
        "predicted_class": np.array(trained.info.class_names)[predicted.numpy()],
        "probability": probability.numpy(),
        "features": vectors.numpy(),
    }
