"""Nearest neighbours against a loop, the linear probe against scikit-learn called directly."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from backbones.data import digits
from backbones.errors import InputError
from backbones.run.analysis.feature_table import FeatureTable
from backbones.run.analysis.probe import (
    L2,
    find_nearest,
    fit_linear,
    fit_probe,
    knn_predict,
    probe_table,
    take_rows_per_class,
)


def pixels() -> FeatureTable:
    """The pixels of 500 training and 200 test digits, as features."""
    columns = []
    for split, source, size in (("train", digits().train, 500), ("test", digits().test, 200)):
        vectors = source.read(torch.arange(size), torch.arange(size))[:, 0, ::2, ::2].flatten(1).numpy()
        labels = source.labels[:size].numpy()
        columns.append([np.full(size, split), np.arange(size), np.full(size, ""), labels, labels.astype(str)])
        columns[-1] += [labels.astype(str), np.ones(size, dtype=np.float32), vectors.astype(np.float32)]
    return FeatureTable({}, *(np.concatenate(parts) for parts in zip(*columns, strict=True)))


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (40, 0.5)])
def test_nearest_neighbours_are_those_of_a_loop(k: int, temperature: float) -> None:
    """Also where there are fewer of them than k."""
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(30, 4, generator=generator), torch.randn(23, 4, generator=generator)
    labels = torch.randint(0, 3, (30,), generator=generator)
    cosine, rows = find_nearest(train, test, k)
    predicted = knn_predict(train, labels, test, k=k, temperature=temperature)
    for i, query in enumerate(test.double()):
        cosines = [
            sum(a * b for a, b in zip(query.tolist(), x.tolist(), strict=True)) / (query.norm() * x.norm()).item()
            for x in train.double()
        ]
        order = sorted(range(30), key=lambda j: -cosines[j])[:k]
        assert rows[i].tolist() == order
        assert cosine[i].tolist() == pytest.approx([cosines[j] for j in order], abs=1e-5)
        votes = [sum(math.exp(cosines[j] / temperature) for j in order if labels[j] == c) for c in range(3)]
        assert predicted[i] == votes.index(max(votes))


def test_the_linear_probe_is_that_of_scikit_learn() -> None:
    train, test = pixels().of_split("train"), pixels().of_split("test")
    mean, std = train.features.mean(axis=0), train.features.std(axis=0)
    std[std == 0] = 1
    for l2 in (1.0, 1e-2):
        classifier = fit_linear(train.features, train.label, l2)
        wanted = LogisticRegression(C=1 / (l2 * 500), max_iter=1000).fit((train.features - mean) / std, train.label)
        predicted = wanted.predict((test.features - mean) / std)
        assert (classifier.predict(test.features) == predicted).mean() > 0.99
        np.testing.assert_allclose(classifier[-1].coef_, wanted.coef_, rtol=0.02, atol=2e-3)


def test_regularisation_is_chosen_on_a_part_of_the_training_features() -> None:
    """That which is best on a fifth after a fit of the others; the last fit is of all of them."""
    train = pixels().of_split("train")
    order = np.random.default_rng(3).permutation(500)
    held, rest = order[:100], order[100:]
    scores = [
        fit_linear(train.features[rest], train.label[rest], l2).score(train.features[held], train.label[held])
        for l2 in L2
    ]
    classifier, l2 = fit_probe(train.features, train.label, seed=3)
    assert len({*scores}) > 2 and l2 == L2[int(np.argmax(scores))]
    assert np.array_equal(classifier[-1].coef_, fit_linear(train.features, train.label, l2)[-1].coef_)


def test_accuracies_of_a_table() -> None:
    found = probe_table(pixels())
    assert (found["train_images"], found["test_images"]) == (500, 200)
    assert found["knn"]["top1"] > 0.85 and found["linear_probe"]["top1"] > 0.85
    assert found["knn"]["neighbours"] == 20 and found["linear_probe"]["l2"] in L2
    few = probe_table(pixels(), knn=False, per_class=5, seed=1)
    assert few["train_images"] == 50 and "knn" not in few
    assert 0.3 < few["linear_probe"]["top1"] < found["linear_probe"]["top1"]
    chosen, test = take_rows_per_class(pixels().of_split("train"), 5, seed=1), pixels().of_split("test")
    classifier, l2 = fit_probe(chosen.features, chosen.label, seed=1)
    assert few["linear_probe"] == {"top1": classifier.score(test.features, test.label), "l2": l2}
    assert probe_table(pixels(), linear=False, per_class=5).keys() == {"train_images", "test_images", "knn"}


def test_some_images_of_each_class() -> None:
    train = pixels().of_split("train")
    few = take_rows_per_class(train, 7, seed=0)
    assert np.bincount(few.label).tolist() == [7] * 10
    assert all(np.array_equal(train.features[i], row) for i, row in zip(few.index, few.features, strict=True))
    assert not np.array_equal(few.index, take_rows_per_class(train, 7, seed=1).index)
    assert len(take_rows_per_class(train, 10**6).label) == 500


def test_one_class() -> None:
    train = pixels().of_split("train")
    for rows in (train.label == 3, np.arange(1)):
        with pytest.raises(InputError, match="and needs two classes in the others"):
            fit_probe(train.features[rows], train.label[rows])


def test_a_fifth_without_the_classes_of_the_others() -> None:
    labels = np.arange(10) % 2
    labels[np.random.default_rng(0).permutation(10)[:2]] = 2
    with pytest.raises(InputError, match="images of these in the fifth"):
        fit_probe(pixels().of_split("train").features[:10], labels)
