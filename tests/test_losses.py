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


def test_soft_targets_are_mixed_losses() -> None:
    torch.manual_seed(0)
    logits, labels, others = torch.randn(6, 5), torch.arange(6) % 5, (torch.arange(6) + 2) % 5
    one_hot = [torch.nn.functional.one_hot(each, 5).float() for each in (labels, others)]
    mixed = cross_entropy(logits, labels, 0.3 * one_hot[0] + 0.7 * one_hot[1])
    torch.testing.assert_close(mixed, 0.3 * cross_entropy(logits, labels) + 0.7 * cross_entropy(logits, others))


def test_computes_in_float32_at_least() -> None:
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert cross_entropy(torch.ones(1, 4, dtype=dtype), torch.tensor([1])).dtype == expected
