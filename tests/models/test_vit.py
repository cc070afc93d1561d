"""timm's VisionTransformer is the oracle."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

import backbones.random as random
import backbones.tree as tree
from backbones.models import MODELS
from backbones.types import InputError


def from_timm(params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Their leaves under our names."""
    return {name.replace("patch_embed.proj", "patch_embed"): leaf.detach().clone() for name, leaf in params.items()}


def test_sizes() -> None:
    params, _ = MODELS["vit-tiny"]((3, 32, 32), 10).init(random.generator(0))
    assert tree.size(params) == 5_362_378 + 2 * 192  # the reference implementation, and a final LayerNorm


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_sizes_at_224_are_those_of_timm(size: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(f"vit_{size}_patch16_224")
    params, _ = MODELS[f"vit-{size}"]((3, 224, 224), 1000, patch_size=16).init(random.generator(0))
    expected = from_timm(dict(theirs.named_parameters()))
    assert {name: leaf.shape for name, leaf in params.items()} == {n: leaf.shape for n, leaf in expected.items()}


@pytest.mark.parametrize("train", [False, True])
def test_logits_are_those_of_timm(train: bool) -> None:
    torch.manual_seed(0)
    theirs = VisionTransformer(img_size=32, patch_size=4, embed_dim=48, depth=3, num_heads=3, num_classes=10)
    theirs = theirs.double().train(train)
    ours = MODELS["vit-tiny"]((3, 32, 32), 10, width=48, depth=3, heads=3, mlp_width=192)
    params = from_timm(dict(theirs.named_parameters()))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    logits, model_state = ours.apply(params, {}, images, train=train)
    torch.testing.assert_close(logits, theirs(images), rtol=1e-10, atol=1e-10)
    assert model_state == {}


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


def test_bad_sizes_are_refused_with_what_would_fit() -> None:
    with pytest.raises(InputError, match=r"size of 5 does not divide .* 32x32 .* one of 1, 2, 4, 8, 16, 32"):
        MODELS["vit-tiny"]((3, 32, 32), 10, patch_size=5)
    with pytest.raises(InputError, match="5 attention heads do not divide a width of 192"):
        MODELS["vit-tiny"]((3, 32, 32), 10, heads=5)
    for name, value in (("patch_size", 0), ("heads", -1), ("width", 0), ("depth", 0), ("dropout", 1.0)):
        with pytest.raises(InputError, match=f"{name} is {value}; it must be"):
            MODELS["vit-tiny"]((3, 32, 32), 10, **{name: value})
