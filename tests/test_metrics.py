import torch

from backbones.metrics import in_top_k


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
