"""Part of a data set: some training images of each class."""

import torch
from torch import Tensor

import backbones.random as random
import backbones.tree as tree
from backbones.data.source import Dataset, Source
from backbones.ranges import Count, checked


@checked
def take_per_class(dataset: Dataset, number: Count, *, seed: int = 0) -> Dataset:
    """The same data set with this many training images of each class, drawn at random; all held-out images stay.

    The mean and the standard deviation of the channels stay those of all training images.

    Args:
        dataset: what to draw from.
        number: images of each class; a class that has fewer keeps all.
        seed: which ones.
    """
    labels = dataset.train.labels
    order = torch.randperm(len(labels), generator=random.generator(seed)).to(labels.device)
    chosen = [order[labels[order] == k][:number] for k in range(dataset.info.num_classes)]
    return dataset._replace(train=select(dataset.train, torch.cat(chosen).sort().values))


def select(source: Source, index: Tensor) -> Source:
    """The samples `index` [M] int64 of a source, in this order."""
    file_name, start = source.file_name, source.start
    return source._replace(
        labels=source.labels[index],
        read=lambda i, keys: source.read(index[i], keys),
        digest=lambda: tree.sha256({"index": index, "labels": source.labels}) + source.digest(),
        start=None if start is None else lambda i, keys: start(index[i], keys),
        file_name=None if file_name is None else lambda i: file_name(int(index[i])),
    )
