"""Sizes of timm's ViTs, and dropout. Their logits: test_convert.py."""

import pytest
import timm
import torch

import backbones.random as random
import backbones.tree as tree
from backbones.errors import InputError
from backbones.models import MODELS


def test_sizes() -> None:
    params, _ = MODELS["vit-tiny"]((3, 32, 32), 10).init(random.generator(0))
    assert tree.size(params) == 5_362_378 + 2 * 192  # the reference implementation's, and a final LayerNorm


@pytest.mark.parametrize(
    ("size", "patch_size"), [("tiny", 16), ("small", 16), ("base", 16), ("large", 16), ("huge", 14)]
)
def test_sizes_at_224_are_those_of_timm(size: str, patch_size: int) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(f"vit_{size}_patch{patch_size}_224", num_classes=1000)
    ours = MODELS[f"vit-{size}"]((3, 224, 224), 1000, patch_size=patch_size).skeleton
    shapes = [sorted(tuple(leaf.shape) for leaf in module.parameters()) for module in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_dropout_is_everywhere_it_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["vit-tiny"]((3, 16, 16), 10, depth=1, dropout=0.5)
    params, _ = model.init(random.generator(0))
    calls = []
    dropout, attention = torch.nn.functional.dropout, torch.nn.functional.scaled_dot_product_attention

    def spy_dropout(x, p, *args):
        calls.append(("dropout", p))
        return dropout(x, p, *args)

    def spy_attention(*qkv, dropout_p):
        calls.append(("attention", dropout_p))
        return attention(*qkv, dropout_p=dropout_p)

    monkeypatch.setattr(torch.nn.functional, "dropout", spy_dropout)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy_attention)
    model.apply(params, {}, torch.randn(2, 3, 16, 16), train=True)
    # After the embedding; the attention weights; after the attention; within and after the MLP.
    assert calls == [("dropout", 0.5), ("attention", 0.5), ("dropout", 0.5), ("dropout", 0.5), ("dropout", 0.5)]


def test_dropout_is_off_in_evaluation_and_follows_the_seed_in_training() -> None:
    model = MODELS["vit-tiny"]((3, 16, 16), 10, depth=2, dropout=0.3)
    params, _ = model.init(random.generator(0))
    images = torch.randn(2, 3, 16, 16)

    def logits(*numbers: int, train: bool) -> torch.Tensor:
        random.seed_torch(*numbers)
        return model.apply(params, {}, images, train=train)[0]

    assert torch.equal(logits(0, train=False), logits(1, train=False))
    assert torch.equal(logits(0, train=True), logits(0, train=True))
    assert not torch.equal(logits(0, train=True), logits(1, train=True))


def test_gradients_under_autocast_with_dropout() -> None:
    model = MODELS["vit-tiny"]((3, 16, 16), 10, depth=2, dropout=0.3)
    params, _ = model.init(random.generator(0))

    def loss(params):
        with torch.autocast("cpu", torch.bfloat16):
            return model.apply(params, {}, torch.ones(2, 3, 16, 16), train=True)[0].float().sum()

    assert all(leaf.dtype == torch.float32 for leaf in torch.func.grad(loss)(params).values())


def test_messages_for_bad_sizes() -> None:
    with pytest.raises(InputError, match=r"size of 5 does not divide .* 32x32 .* one of 1, 2, 4, 8, 16, 32"):
        MODELS["vit-tiny"]((3, 32, 32), 10, patch_size=5)
    with pytest.raises(InputError, match="5 attention heads do not divide a width of 192"):
        MODELS["vit-tiny"]((3, 32, 32), 10, heads=5)
    for name, value in (("patch_size", 0), ("heads", -1), ("width", 0), ("depth", 0), ("dropout", 1.0)):
        with pytest.raises(InputError, match=f"{name} is {value}; it must be"):
            MODELS["vit-tiny"]((3, 32, 32), 10, **{name: value})
