import torch

from backbones.losses import cross_entropy


def test_is_minus_log_probability_of_the_smoothed_target() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    for smoothing in (0.0, 0.1):
        target = torch.full((6, 5), smoothing / 5)
        target[torch.arange(6), labels] += 1 - smoothing
        expected = -(target * (logits.exp() / logits.exp().sum(1, keepdim=True)).log()).sum(1)
        torch.testing.assert_close(cross_entropy(logits, labels, label_smoothing=smoothing), expected)


def test_rows_that_only_fill_the_batch_cost_nothing() -> None:
    losses = cross_entropy(torch.ones(2, 4), torch.tensor([1, -1]))
    assert losses[1] == 0 and losses[0] > 1


def test_computes_in_float32_at_least() -> None:
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert cross_entropy(torch.ones(1, 4, dtype=dtype), torch.tensor([1])).dtype == expected
