import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from backbones.metrics import calibration, class_scores, in_top_k


def test_equals_topk_where_logits_differ() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 10), torch.randint(10, (200,))
    for k in (1, 5, 10):
        expected = (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1)
        assert torch.equal(in_top_k(logits, labels, k), expected)


def test_more_guesses_than_classes_is_always_right() -> None:
    assert in_top_k(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), 5).all()


def test_padding_and_nan_are_wrong_and_ties_go_by_class() -> None:
    logits = torch.tensor([[3.0, 1, 2], [1, 1, 1], [torch.nan, 1, 2]])
    assert in_top_k(logits, torch.tensor([0, 1, 2]), 1).tolist() == [True, False, False]
    assert in_top_k(logits, torch.tensor([0, 1, 2]), 2).tolist() == [True, True, False]
    assert in_top_k(logits, torch.tensor([-1, -1, -1]), 5).tolist() == [False, False, False]


def test_class_scores_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (60,), generator=generator)
    guesses = torch.where(torch.rand(60, generator=generator) < 0.5, labels, labels + 1)
    labels[labels == 2] = 1  # class 2 is predicted but has no images, class 6 is neither
    guesses[guesses == 4] = 3  # class 4 has images but is never predicted
    scores = class_scores(torch.from_numpy(confusion_matrix(labels, guesses, labels=range(7))))
    precision, recall, f1, _ = precision_recall_fscore_support(labels, guesses, labels=range(7), zero_division=0)
    for ours, theirs in ((scores.precision, precision), (scores.recall, recall), (scores.f1, f1)):
        assert ours.nan_to_num().tolist() == pytest.approx(theirs.tolist())
    undefined = [each.isnan().nonzero().flatten().tolist() for each in scores]
    assert undefined == [[2, 5, 6], [4, 6], [6]]
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert scores.recall.nanmean().item() == pytest.approx(balanced_accuracy_score(labels, guesses))
    assert scores.f1.nanmean().item() == pytest.approx(f1_score(labels, guesses, average="macro"))


def test_calibration_is_its_definition() -> None:
    """Bin by bin, as the equations have it."""
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(500, 4), torch.randint(4, (500,))
    confidence, guesses = logits.double().softmax(dim=1).max(dim=1)
    right, expected, measured = (guesses == labels).double(), 0.0, calibration(logits, labels)
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        assert measured.counts[m] == inside.sum()
        if inside.any():
            assert measured.accuracy[m].item() == pytest.approx(right[inside].mean().item())
            assert measured.confidence[m].item() == pytest.approx(confidence[inside].mean().item(), rel=1e-6)
            expected += inside.sum().item() / 500 * abs(right[inside].mean() - confidence[inside].mean()).item()
        else:
            assert measured.accuracy[m].isnan() and measured.confidence[m].isnan()
    assert measured.error == pytest.approx(expected, rel=1e-6) and expected > 0.1


def test_calibration_at_the_edges_of_bins() -> None:
    sure, half = torch.tensor([[100.0, -100.0]]), torch.zeros(1, 2)
    measured = calibration(torch.cat([sure, sure, half, half]), torch.tensor([0, 1, 0, 1]), num_bins=4)
    assert measured.counts.tolist() == [0, 2, 0, 2]  # 1/2 belongs to (1/4, 1/2], and 1 to (3/4, 1]
    assert measured.accuracy[[1, 3]].tolist() == [0.5, 0.5] and measured.error == 0.25
    assert torch.tensor(calibration(half * torch.nan, torch.tensor([0])).error).isnan()
