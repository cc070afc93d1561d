"""What features are good for: accuracy of nearest neighbours and of a linear classifier on them.

N training and M test images, D dimensions of a vector, K classes.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.errors import InputError
from backbones.run.analysis.feature_table import FeatureTable

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""Those of DINO (Caron et al., arXiv 2104.14294, appendix F.1)."""

L2 = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Regularisation that the linear probe chooses from, the strongest first."""

HELD_OUT = 0.2
"""Share of the training images on which it is chosen."""


def find_nearest(images: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of N images, all N if there are fewer: cosines [M, k], the largest first, and indices [M, k] int64.

    Args:
        images: [N, D].
        queries: [M, D].
        k: how many.
    """
    images, k = F.normalize(images, dim=1), min(k, len(images))
    parts = [(part @ images.T).topk(k) for part in F.normalize(queries, dim=1).split(1000)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def knn_predict(
    train: Tensor, labels: Tensor, test: Tensor, *, k: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> Tensor:
    """Classes [M] by a vote of the k nearest training images, each with exp(cosine / temperature) votes.

    Source: Caron et al., arXiv 2104.14294, appendix F.1.

    Args:
        train: [N, D].
        labels: [N] int64.
        test: [M, D].
        k: neighbours.
        temperature: the lower it is, the more the nearest of them count.
    """
    cosine, neighbours = find_nearest(train, test, k)
    votes = torch.zeros(len(test), int(labels.max()) + 1)
    return votes.scatter_add(1, labels[neighbours], (cosine / temperature).exp()).argmax(dim=1)


def fit_linear(features: np.ndarray, labels: np.ndarray, l2: float) -> Any:
    """A classifier of scikit-learn: features [N, D] standardised, then least mean cross-entropy + l2/2 |weights|^2."""
    from sklearn.linear_model import LogisticRegression  # late: it takes a second
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=1 / (l2 * len(labels)), max_iter=1000)
    return make_pipeline(StandardScaler(), regression).fit(features, labels)


def fit_probe(features: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> tuple[Any, float]:
    """`fit_linear` of all training images, and its `l2`: the best on a fifth of them after a fit of the others.

    Args:
        features: [N, D].
        labels: [N] int64.
        seed: of the fifth.

    Raises:
        InputError: there is one class only, or there are too few images.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    held, rest = np.split(order, [round(HELD_OUT * len(labels))])
    if len(np.unique(labels[rest])) < 2 or not np.isin(labels[held], labels[rest]).any():
        raise InputError(
            "a linear probe chooses its regularisation on a fifth of the training images, and needs two classes in the "
            f"others, and images of these in the fifth; there are {len(labels)} images of {len(np.unique(labels))} "
            "classes: give it more"
        )

    def score(l2: float) -> float:
        return fit_linear(features[rest], labels[rest], l2).score(features[held], labels[held])

    best = max(L2, key=score)  # the first of equals
    return fit_linear(features, labels, best), best


def take_rows_per_class(table: FeatureTable, number: int, *, seed: int = 0) -> FeatureTable:
    """So many rows of each class, drawn by a seed, or all where there are fewer."""
    order = np.random.default_rng(seed).permutation(len(table.label))
    parts = [order[table.label[order] == k][:number] for k in np.unique(table.label)]
    return table.take(np.sort(np.concatenate(parts)))


def probe_table(
    table: FeatureTable, *, knn: bool = True, linear: bool = True, per_class: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Accuracies of the test images, each in [0, 1], and how they came about, as plain data.

    Args:
        table: with both splits.
        knn: whether to count that of nearest neighbours.
        linear: whether to count that of a linear probe.
        per_class: training images of each class that are used; None for all.
        seed: which those are, and on which of them the regularisation is chosen.

    Raises:
        InputError: a linear probe is wanted, and there is one class only.
    """
    train, test = table.of_split("train"), table.of_split("test")
    if per_class is not None:
        train = take_rows_per_class(train, per_class, seed=seed)
    found: dict[str, Any] = {"train_images": len(train.label), "test_images": len(test.label)}
    if knn:
        predicted = knn_predict(*map(torch.from_numpy, (train.features, train.label, test.features)))
        top1 = float((predicted.numpy() == test.label).mean())
        neighbours = min(NEIGHBOURS, len(train.label))
        found["knn"] = {"top1": top1, "neighbours": neighbours, "temperature": TEMPERATURE}
    if linear:
        classifier, l2 = fit_probe(train.features, train.label, seed=seed)
        found["linear_probe"] = {"top1": float(classifier.score(test.features, test.label)), "l2": l2}
    return found
