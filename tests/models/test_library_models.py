"""Models of timm and torchvision by name: some of each kind; docs/library_models.py tries hundreds."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision.models

import backbones.random as random
import backbones.tree as tree
from backbones.errors import InputError
from backbones.models.library import from_library
from backbones.models.pretrained import with_pretrained
from backbones.models.timm import timm as timm_model
from backbones.models.torchvision import torchvision as torchvision_model
from docs.library_models import draw_names, try_model

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("torchvision", "shufflenet_v2_x0_5"),
        ("torchvision", "googlenet"),
        ("timm", "test_efficientnet"),
        ("timm", "test_vit"),
        ("timm", "test_convnext"),
        ("timm", "mobilevitv2_050"),
        ("timm", "xcit_nano_12_p16_224"),
    ],
)
def test_models_run_and_give_their_own_logits(library: str, name: str) -> None:
    _, with_numbers, error = try_model(library, name)
    assert with_numbers and error < 1e-5


def test_the_names_are_of_all_files_of_timm() -> None:
    names = draw_names()
    files = {timm.models.model_entrypoint(name).__module__ for name in timm.list_models()}
    assert len(set(names)) == 200 and {timm.models.model_entrypoint(name).__module__ for name in names} == files
    assert names == draw_names()


@pytest.mark.parametrize("make", [timm_model, torchvision_model], ids=["timm", "torchvision"])
def test_images_of_one_channel(make) -> None:
    model = make((1, 32, 32), 7, architecture="resnet18")
    params, model_state = model.init(random.generator(0))
    assert params["conv1.weight"].shape == (64, 1, 7, 7)
    logits, _ = model.apply(params, model_state, torch.zeros(2, 1, 32, 32), train=True)
    assert logits.shape == (2, 7)


def test_pretrained_weights(tmp_path: Path) -> None:
    theirs = torchvision.models.mobilenet_v3_small(num_classes=10)
    path = tmp_path / "weights.pth"
    torch.save({"model": theirs.state_dict()}, path)
    options = {"architecture": "mobilenet_v3_small", "pretrained": str(path)}
    weights = tree.map(torch.clone, dict(theirs.state_dict()))
    params, model_state = torchvision_model((3, 32, 32), 10, **options).init(random.generator(0))
    assert tree.sha256({**params, **model_state}) == tree.sha256(weights)
    params, _ = torchvision_model((1, 32, 32), 7, **options).init(random.generator(0))
    torch.testing.assert_close(params["features.0.0.weight"], weights["features.0.0.weight"].sum(1, keepdim=True))
    other = timm_model((3, 32, 32), 7, architecture="test_resnet", pretrained=str(path))
    with pytest.raises(InputError, match=r"these are not weights of this model:\n  conv1\.0\.weight is missing"):
        other.init(random.generator(0))
    path.unlink()
    model = torchvision_model((3, 32, 32), 10, **options)  # a trained run is evaluated without the file
    with pytest.raises(InputError, match=r"weights\.pth: there is no such file"):
        model.init(random.generator(0))


def test_pretrained_weights_on_another_grid(tmp_path: Path) -> None:
    theirs = timm.create_model("test_vit", num_classes=1000, img_size=160)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    model = timm_model((1, 64, 64), 7, architecture="test_vit", pretrained=str(tmp_path / "weights.pth"))
    params, _ = model.init(random.generator(0))
    expected = timm.layers.resample_abs_pos_embed(theirs.pos_embed, [4, 4], num_prefix_tokens=theirs.num_prefix_tokens)
    torch.testing.assert_close(params["pos_embed"], expected.detach())
    assert torch.equal(params["blocks.0.attn.qkv.weight"], theirs.blocks[0].attn.qkv.weight)
    assert params["head.weight"].shape == (7, 64)


def test_messages() -> None:
    with pytest.raises(InputError, match=r"unknown architecture of timm 'resnet51'; did you mean resnet5.* others$"):
        timm_model((3, 32, 32), 10, architecture="resnet51")
    with pytest.raises(InputError, match=r"unknown architecture of torchvision 'resnet51'; did you mean resnet50"):
        torchvision_model((3, 32, 32), 10, architecture="resnet51")
    with pytest.raises(InputError, match=r"timm has no weights resnet50\.typo: .*; leave out what is after the dot"):
        timm_model((3, 32, 32), 10, architecture="resnet50.typo")
    with pytest.raises(InputError, match=r"inception_v4 of timm does not take images of 3x16x16: Calculated padded"):
        timm_model((3, 16, 16), 10, architecture="inception_v4")


def test_a_model_that_does_not_fit_into_the_memory() -> None:
    with pytest.raises(InputError, match=r"giant does not fit into the memory: .*can't allocate memory"):
        from_library("giant", lambda: torch.nn.Linear(2**25, 2**25), (3, 32, 32), 10, None)


def test_a_model_of_two_classifiers() -> None:
    """Both are the head, also where they are of another size than those of a file."""
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=1000)
    model = timm_model((3, 32, 32), 10, architecture="deit_tiny_distilled_patch16_224")
    heads = {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert {name for name, role in model.roles.items() if role.part == "head"} == heads
    started, _ = with_pretrained(model, theirs.state_dict(), (3, 32, 32))
    params, model_state = started.init(random.generator(0))
    assert torch.equal(params["patch_embed.proj.weight"], theirs.patch_embed.proj.weight)
    assert model.features(params, model_state, torch.zeros(2, 3, 32, 32))["pooled"].shape == (2, 192)
