"""Sizes of timm's ViTs, dropout, and the options of later papers. The logits of timm's: test_convert.py."""

from math import cos, sin

import pytest
import timm
import torch

import backbones.random as random
import backbones.tree as tree
from backbones.errors import InputError
from backbones.models import MODELS
from backbones.models.vit import EncoderBlock, attention_weights


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


@pytest.mark.parametrize("train", [False, True])
def test_registers_and_mean_pool_are_those_of_timm(train: bool) -> None:
    """timm has the registers before the patches: the order does not matter."""
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 4, "img_size": (16, 24), "patch_size": 4, "num_classes": 10}
    theirs = timm.models.VisionTransformer(
        **sizes, class_token=False, reg_tokens=3, global_pool="avg", fc_norm=False, no_embed_class=True
    ).train(train)
    options = {"patch_size": 4, "width": 64, "depth": 2, "heads": 4, "mlp_width": 256}
    ours = MODELS["vit-tiny"]((3, 16, 24), 10, **options, pool="mean", registers=3)
    names = {name: name.replace("patch_embed.proj", "patch_embed") for name, _ in theirs.named_parameters()}
    names |= {"reg_token": "register_tokens"}
    params = {names[name]: leaf.detach() for name, leaf in theirs.named_parameters()}
    assert params.keys() == ours.roles.keys()
    images = torch.randn(2, 3, 16, 24)
    torch.testing.assert_close(ours.apply(params, {}, images, train=train)[0], theirs(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_attention_weights_reproduce_the_output_of_their_block(precision: torch.dtype) -> None:
    """Through the values, the projection, the residual and the MLP."""
    model = MODELS["vit-tiny"]((3, 16, 24), 10, width=24, heads=3, depth=2, pool="mean", registers=2)
    params, _ = tree.map(
        lambda leaf: (leaf + 0.1 * torch.randn(leaf.shape)).to(precision), model.init(random.generator(0))
    )
    features = model.features(params, {}, torch.randn(2, 3, 16, 24, dtype=precision))
    found = attention_weights(model, params, features)
    assert [*found] == ["block1", "block2"]
    for i, x in enumerate((features["stem"], features["block1"])):
        weights = found[f"block{i + 1}"]
        assert weights.shape == (2, 3, 26, 26)
        torch.testing.assert_close(weights.sum(dim=3), torch.ones(2, 3, 26, dtype=precision))
        block = EncoderBlock(24, 3, 768, 0.0, 0.0).to(precision)
        block.load_state_dict({name[9:]: leaf for name, leaf in params.items() if name.startswith(f"blocks.{i}.")})
        values = block.attn.qkv(block.norm1(x))[..., 48:].unflatten(2, (3, 8)).transpose(1, 2)  # [B, heads, N, 8]
        x = x + block.attn.proj((weights @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(x + block.mlp(block.norm2(x)), features[f"block{i + 1}"], rtol=1e-4, atol=1e-5)


def test_fixed_positions() -> None:
    """Each quarter: sine and cosine of x, sine and cosine of y, times 10000^-i/(n - 1)."""
    model = MODELS["vit-tiny"]((3, 8, 12), 10, width=24, heads=2, depth=1, positions="sincos", pool="mean")
    params, model_state = model.init(random.generator(0))
    assert "pos_embed" not in params and model_state["pos_embed"].shape == (1, 6, 24)
    for token in range(6):
        y, x = divmod(token, 3)
        expected = [
            function(position * 10000 ** (-i / 5)) for position in (x, y) for function in (sin, cos) for i in range(6)
        ]
        torch.testing.assert_close(model_state["pos_embed"][0, token], torch.tensor(expected))
    with_class_token = MODELS["vit-tiny"]((3, 8, 12), 10, width=24, heads=2, depth=1, positions="sincos")
    fixed = with_class_token.init(random.generator(0))[1]["pos_embed"]
    assert not fixed[:, 0].any() and torch.equal(fixed[:, 1:], model_state["pos_embed"])


def test_patches_by_convolutions() -> None:
    model = MODELS["vit-tiny"]((3, 32, 16), 10, patch_size=8, patch_embed="conv", depth=1)
    layers = [layer for layer in model.skeleton.patch_embed if isinstance(layer, torch.nn.Conv2d)]
    assert [(layer.out_channels, layer.kernel_size, layer.stride) for layer in layers] == [
        (48, (3, 3), (2, 2)), (96, (3, 3), (2, 2)), (192, (3, 3), (2, 2)), (192, (1, 1), (1, 1)),
    ]  # fmt: skip
    params, model_state = model.init(random.generator(0))
    assert model.features(params, model_state, torch.randn(2, 3, 32, 16))["stem"].shape == (2, 1 + 4 * 2, 192)
    with pytest.raises(InputError, match="got patches of 6 and a width of 192: set patch_size to one of these"):
        MODELS["vit-tiny"]((3, 36, 36), 10, patch_size=6, patch_embed="conv")


def test_messages_for_bad_sizes() -> None:
    with pytest.raises(InputError, match=r"size of 5 does not divide .* 32x32 .* one of 1, 2, 4, 8, 16, 32"):
        MODELS["vit-tiny"]((3, 32, 32), 10, patch_size=5)
    with pytest.raises(InputError, match="5 attention heads do not divide a width of 192"):
        MODELS["vit-tiny"]((3, 32, 32), 10, heads=5)
    with pytest.raises(InputError, match="a width that is a multiple of 4; got 30"):
        MODELS["vit-tiny"]((3, 32, 32), 10, width=30, positions="sincos")
    for name, value in (("patch_size", 0), ("heads", -1), ("width", 0), ("depth", 0), ("dropout", 1.0)):
        with pytest.raises(InputError, match=f"{name} is {value}; it must be"):
            MODELS["vit-tiny"]((3, 32, 32), 10, **{name: value})
