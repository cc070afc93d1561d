"""Training images before and after their augmentation.

S samples, V variants of each, C channels, H and W height and width of an image, K classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import backbones.random as random
from backbones.component import Use
from backbones.data import Dataset, make_batches
from backbones.experiment import Experiment
from backbones.run.analysis.pictures import Tile, caption
from backbones.types import CPU


class Sheet(NamedTuple):
    """What is drawn."""

    original: Tensor
    """[S, C, H, W] uint8."""
    labels: Tensor
    """[S] int64."""
    variants: Tensor
    """[S, V, C, H, W], uint8 or float32 in [0, 255]."""
    targets: Tensor
    """[S, V, K] float32, class probabilities."""
    class_names: Sequence[str]
    """K names."""

    @property
    def rows(self) -> list[list[Tile]]:
        """For each sample the original with its class, then the variants.

        A variant has a caption only where its target is not the class of the original.
        """
        rows = []
        columns = self.original, self.labels, self.variants, self.targets
        for image, label, variants, targets in zip(*columns, strict=True):
            own = [self.class_names[label]]
            captions = [caption(target, self.class_names) for target in targets]
            shown = [[] if each == own else each for each in captions]
            rows.append([Tile(image, own), *map(Tile, variants, shown)])
        return rows


def make_sheet(
    experiment: Experiment, dataset: Dataset, augment: Use, *, samples: int, variants: int, step: int
) -> Sheet:
    """The first samples of the batch of a step, and what one process would make of them there.

    Args:
        experiment: says which samples are in the batch.
        dataset: that of the experiment, on the CPU.
        augment: the augmentation.
        samples: at most S of them.
        variants: V, how often each is augmented: at the step and at those after it, each time in a new epoch.
        step: counted from 0.

    Raises:
        InputError: the augmentation does not suit the batch.
    """
    num_classes = dataset.info.num_classes
    function = augment.make(num_classes=num_classes, device=CPU)
    seed, size = experiment.seed, experiment.batch_size
    batches = make_batches(dataset.train, seed=seed, batch_size=size, device=CPU, sampling=experiment.sampling)
    batch, key, images, targets = batches(step), random.key(seed), [], []
    for i in range(variants):
        later = batch._replace(epoch=batch.epoch + i)
        augmented = function(random.sample_keys(key, step + i, later.index, later.epoch), later)
        one_hot = F.one_hot(augmented.labels, num_classes).to(torch.float32)
        images.append(augmented.images[:samples])
        targets.append((one_hot if augmented.targets is None else augmented.targets)[:samples])
    return Sheet(
        batch.images[:samples],
        batch.labels[:samples],
        torch.stack(images, dim=1),
        torch.stack(targets, dim=1),
        dataset.info.class_names,
    )
