"""The models of torchvision and timm are the oracles: their weights in our trees give their logits, in both modes."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision.models
from helpers.runs import relative_error
from torch import nn

import backbones.random as random
import backbones.tree as tree
from backbones.errors import InputError
from backbones.models import MODELS, Model, with_pretrained
from backbones.models.convert import FORMATS, export_weights
from backbones.models.state_dict import StateDict, read_state_dict, write_state_dict
from backbones.types import ModelState, Params

pytestmark = pytest.mark.slow

SHAPE = (3, 32, 32)


def torchvision_model(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, num_classes=10, **options)


def timm_model(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=10, **options)


def small_vgg() -> nn.Module:
    """The usual change of torchvision's VGG for small images."""
    module = vgg11_features("vgg11", batch_norm=False)
    module.avgpool, module.classifier = nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Linear(512, 10))
    return module


def narrow_vgg() -> nn.Module:
    """With a classifier of 16 hidden features, for time."""
    module = vgg11_features("vgg11_bn", batch_norm=True)
    layers = [nn.Linear(512 * 7 * 7, 16), nn.ReLU(), nn.Dropout(0.0), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.0)]
    module.classifier = nn.Sequential(*layers, nn.Linear(16, 10))
    return module


def vgg11_features(name: str, *, batch_norm: bool) -> nn.Module:
    """A VGG without memory for its classifier."""
    with torch.device("meta"):
        module = torchvision.models.get_model(name)
    module.features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"], batch_norm=batch_norm)
    for layer in module.features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return module


IMAGENET = {"stem": "imagenet"}
ORACLES = {
    "resnet18": (torchvision_model("resnet18"), IMAGENET),
    "resnet50": (torchvision_model("resnet50"), IMAGENET),
    "resnext50-32x4d": (torchvision_model("resnext50_32x4d"), IMAGENET),
    "se-resnet50": (timm_model("seresnet50"), IMAGENET),
    "vgg11": (small_vgg, {}),
    "vgg11-bn": (narrow_vgg, {"head": "mlp", "dropout": 0.0}),
    "mobilenet-v2": (torchvision_model("mobilenet_v2", dropout=0.0), IMAGENET),
    "convnext-tiny": (timm_model("convnext_tiny"), IMAGENET),
    "convnext-atto": (timm_model("convnext_atto"), IMAGENET),
    "vit-tiny": (timm_model("vit_tiny_patch16_224", img_size=32, patch_size=4), {}),
    "mixer-small": (timm_model("mixer_s16_224", img_size=32), {"patch_size": 16}),
}
"""Our name -> their model of 10 classes, our options."""


def random_oracle(name: str) -> nn.Module:
    """Their model in float64, with random norms and biases, and running statistics of one batch, rounded to float32."""
    torch.manual_seed(0)
    theirs = ORACLES[name][0]().double().train()
    with torch.no_grad():
        for leaf in theirs.parameters():
            if leaf.ndim == 1 or (leaf == 0).all():
                leaf.add_(torch.randn_like(leaf))
        theirs(torch.randn(4, 3, 32, 32, dtype=torch.float64))
    return theirs.float().double()


def make(name: str) -> Model:
    return MODELS[name](SHAPE, 10, **ORACLES[name][1])


def read(model: Model, state_dict: StateDict) -> tuple[Params, ModelState]:
    """Our trees with their weights, in float64."""
    model, notes = with_pretrained(model, state_dict, SHAPE)
    assert len(notes) <= 1 and "initialised" not in "".join(notes)
    return tree.map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, model.init(random.generator(0)))


@pytest.mark.parametrize("name", ORACLES)
def test_their_weights_give_their_logits_and_come_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backbones.models.vgg.MLP_WIDTH", 16)  # for time
    theirs = random_oracle(name)
    model = make(name)
    params, model_state = read(model, theirs.state_dict())
    images = torch.randn(4, *SHAPE, dtype=torch.float64)
    tolerance = 1e-6 if name == "vgg11-bn" else 1e-10  # biases are subtracted from running means
    for train in (False, True):
        expected = theirs.train(train)(images)
        logits, new_model_state = model.apply(params, model_state, images, train=train)
        assert relative_error(logits, expected) < tolerance
        # Also the part that depends on the image, which is small in some new models.
        assert relative_error(logits - logits.mean(dim=0), expected - expected.mean(dim=0)) < 1e-5

    _, expected_model_state = read(model, theirs.state_dict())
    for key, leaf in new_model_state.items():
        assert relative_error(leaf.double(), expected_model_state[key].double()) < 1e-6

    expected = theirs.eval()(images)
    theirs.load_state_dict(export_weights(name, params, new_model_state))
    assert relative_error(theirs(images), expected) < tolerance


def test_every_format_has_an_oracle() -> None:
    assert {id(FORMATS[name]) for name in ORACLES} == {id(format) for format in FORMATS.values()}


@pytest.mark.parametrize("file_name", ["weights.pth", "weights.safetensors"])
def test_files(file_name: str, tmp_path: Path) -> None:
    model = make("resnet18")
    params, model_state = model.init(random.generator(0))
    path = tmp_path / file_name
    write_state_dict(path, export_weights("resnet18", params, model_state))
    loaded = with_pretrained(model, read_state_dict(path), SHAPE)[0].init(random.generator(1))
    assert tree.sha256(loaded) == tree.sha256((params, model_state))
    assert loaded[0]["stem.0.weight"].is_contiguous(memory_format=torch.channels_last)

    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=rf"{re.escape(str(path))}: cannot be read as weights, it may be truncated"):
        read_state_dict(path)


def test_no_file_and_no_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        read_state_dict(tmp_path / "absent.pth")
    torch.save({"model": {}, "epoch": 3}, tmp_path / "run.pth")
    with pytest.raises(InputError, match="wanted a dict of tensors"):
        read_state_dict(tmp_path / "run.pth")


def test_no_format() -> None:
    with pytest.raises(InputError, match="unknown format of a model 'airbench'"):
        export_weights("airbench", {}, {})
