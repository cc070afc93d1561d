"""Maps of what a class is predicted by, each against another way to compute it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.trained import make_trained
from PIL import Image
from torch import nn

from backbones.data import digits
from backbones.errors import InputError
from backbones.models import MODELS, freeze, from_module
from backbones.models.base import with_memory
from backbones.run.analysis.explain import attention_maps, default_layers, draw_map, grad_cam, input_gradient, make_maps
from backbones.run.analysis.pictures import Tile, save_tiles, to_rgb
from backbones.run.analysis.trained_model import TrainedModel
from backbones.types import ModelState, Params

IMAGES, CLASSES = digits().test.read(torch.arange(3), torch.arange(3)), torch.tensor([1, 7, 7])

VIT = {"depth": 3, "width": 24, "heads": 2, "patch_size": 4}


def make(name: str, **options: object) -> TrainedModel:
    return make_trained(MODELS[name]((3, 16, 16), 10, **options), digits().info)


def test_the_gradient_is_that_of_finite_differences() -> None:
    trained = make("vit-tiny", **VIT)
    gradient = input_gradient(trained, IMAGES, CLASSES)
    assert gradient.shape == (3, 16, 16)
    for i, y, x in ((0, 3, 5), (1, 8, 8), (2, 15, 0)):
        slopes = []
        for channel in range(3):
            ends = IMAGES[[i, i]].double()
            ends[0, channel, y, x] += 4
            ends[1, channel, y, x] -= 4
            above, below = trained.logits(ends)[:, CLASSES[i]].tolist()
            slopes.append(abs(above - below) / 8)
        assert gradient[i, y, x].item() == pytest.approx(max(slopes), rel=0.02)


@pytest.mark.parametrize(("name", "layer"), [("resnet18", "stage2"), ("airbench", "stage2"), ("convnext-atto", "stem")])
def test_grad_cam_is_that_of_hooks(name: str, layer: str) -> None:
    """In plain torch, on the module with the same weights."""
    trained = make(name)
    module = with_memory(trained.model.skeleton)
    module.load_state_dict(trained.leaves, strict=False)
    kept = []
    place = module.stem if layer == "stem" else module.stages[int(layer[-1]) - 1]

    def keep(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    place.register_forward_hook(keep)
    for i in range(3):
        module(trained.normalize(IMAGES[i : i + 1]))[0, CLASSES[i]].backward()
    got = grad_cam(trained, IMAGES, CLASSES, layer)
    assert got.max() > 0
    for each, maps in zip(got, kept, strict=True):
        wanted = sum(g.mean() * a for g, a in zip(maps.grad[0], maps[0], strict=True)).clamp(min=0)
        torch.testing.assert_close(each, wanted.detach(), rtol=1e-3, atol=1e-6)


def test_grad_cam_of_a_module_of_ones_own_is_refused_where_its_head_is_not_known() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.head(self.stem(x).mean(dim=(2, 3)))

    def features(params: Params, model_state: ModelState, images: torch.Tensor) -> dict[str, torch.Tensor]:
        stem = nn.functional.conv2d(images, params["stem.weight"], params["stem.bias"])
        return {"stem": stem, "pooled": stem.mean(dim=(2, 3))}

    trained = make_trained(from_module(Twice)._replace(features=features), digits().info)
    with pytest.raises(InputError, match="what Twice does after its last layer is not known"):
        grad_cam(trained, IMAGES, CLASSES, "stem")


class OwnNet(nn.Module):
    """Maps of which the next layer writes over one, and one with channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), ChannelsLast()
        self.head = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.last(self.relu(self.conv(x))).square().mean(dim=(1, 2)))


class ChannelsLast(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("layer", ["conv", "relu", "last"])
def test_grad_cam_of_a_module_of_ones_own(layer: str) -> None:
    trained = make_trained(from_module(OwnNet), digits().info)
    weight, bias = trained.params["conv.weight"], trained.params["conv.bias"]
    conv = nn.functional.conv2d(trained.normalize(IMAGES), weight, bias, padding=1)
    maps = (conv if layer == "conv" else conv.relu()).detach().requires_grad_()
    logits = maps.relu().square().mean(dim=(2, 3)) @ trained.params["head.weight"].T + trained.params["head.bias"]
    (gradient,) = torch.autograd.grad(logits.gather(1, CLASSES[:, None]).sum(), maps)
    wanted = (gradient.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1).relu().detach()
    got = grad_cam(trained, IMAGES, CLASSES, layer)
    assert got.max() > 0
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)


def test_attention_of_frozen_blocks() -> None:
    trained = make("vit-tiny", **VIT)
    trunk = {name: leaf for name, leaf in trained.params.items() if not name.startswith("head.")}
    head = {name: leaf for name, leaf in trained.params.items() if name.startswith("head.")}
    frozen = trained._replace(model=freeze(trained.model, trunk.keys()), params=head, model_state=trunk)
    maps = attention_maps(frozen, IMAGES)
    for name, each in attention_maps(trained, IMAGES).items():
        assert torch.equal(maps[name], each)


@pytest.mark.parametrize("options", [{}, {"pool": "mean", "registers": 2}], ids=["class token", "mean of patches"])
def test_attention_maps_and_rollout(options: dict) -> None:
    trained = make("vit-tiny", **VIT, **options)
    maps = attention_maps(trained, IMAGES)
    assert [*maps] == ["block1", "block2", "block3", "rollout"]
    assert {tuple(each.shape) for each in maps.values()} == {(3, 4, 4)}
    first = 0 if options else 1
    num_tokens = 16 + (2 if options else 1)
    features = trained.features(IMAGES)
    flow = np.eye(num_tokens)[None].repeat(3, axis=0)
    for i, start in enumerate(["stem", "block1", "block2"]):
        x = nn.functional.layer_norm(features[start], (24,), *own(trained, f"blocks.{i}.norm1."), eps=1e-6)
        q, k, _ = nn.functional.linear(x, *own(trained, f"blocks.{i}.attn.qkv.")).chunk(3, dim=2)
        heads = [(q[..., h] @ k[..., h].mT / 12**0.5).softmax(dim=2) for h in (slice(12), slice(12, 24))]
        mean = ((heads[0] + heads[1]) / 2).detach().numpy()
        flow = (0.5 * mean + 0.5 * np.eye(num_tokens)) @ flow
        rows = mean[:, :16].mean(axis=1) if options else mean[:, 0]
        wanted = rows[:, first : first + 16].reshape(3, 4, 4)
        np.testing.assert_allclose(maps[f"block{i + 1}"].numpy(), wanted, rtol=1e-4, atol=1e-6)
    rows = flow[:, :16].mean(axis=1) if options else flow[:, 0]
    np.testing.assert_allclose(flow.sum(axis=2), 1, rtol=1e-5)
    wanted = rows[:, first : first + 16].reshape(3, 4, 4)
    np.testing.assert_allclose(maps["rollout"].numpy(), wanted, rtol=1e-4, atol=1e-6)


def own(trained: TrainedModel, start: str) -> list[torch.Tensor]:
    """Weight and bias."""
    return [trained.params[start + name] for name in ("weight", "bias")]


def test_what_is_shown_of_a_model() -> None:
    """Maps of the size of the image, whose largest value is 1."""
    shown = {
        "resnet18": ["Grad-CAM, stage3"],  # stage4 has 2x2 positions
        "vit-tiny": ["attention, block3", "attention, rollout"],
        "mixer-tiny": [],
    }
    for name, wanted in shown.items():
        trained = make(name, **(VIT if name == "vit-tiny" else {}))
        maps = make_maps(trained, IMAGES, CLASSES, default_layers(trained))
        assert [*maps] == ["input gradient", *wanted]
        for each in maps.values():
            assert each.shape == (3, 16, 16) and each.amax(dim=(1, 2)).tolist() == pytest.approx([1] * 3)
    with pytest.raises(
        InputError, match=r"block1 gives \(3, 16, 192\) for 3 images; Grad-CAM needs maps \[B, C, H, W\]"
    ):
        make_maps(trained, IMAGES, CLASSES, ["block1"])
    with pytest.raises(InputError, match="unknown layer 'stage9'"):
        make_maps(make("resnet18"), IMAGES, CLASSES, ["stage9"])
    with pytest.raises(InputError, match="unknown block 'stem'"):
        make_maps(make("vit-tiny", **VIT), IMAGES, CLASSES, ["stem"])


def test_a_map_over_its_image() -> None:
    """Black where both are 0, yellow where the map is 1, and brighter by a quarter of the image."""
    image, values = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(4, 4)
    image[:, 2:], values[:, 2:] = 255, 1
    drawn = draw_map(image, values).int()
    assert drawn[:, 0, 0].max() < 5
    assert drawn[:2, 0, 3].min() > 180 and drawn[2, 0, 3] < 130
    assert ((drawn[:, 3] - drawn[:, 0]).float() - 255 / 4).abs().max() <= 1


def test_captions_stay_below_their_tile(tmp_path: Path) -> None:
    image = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    save_tiles(
        [[Tile(image, ["Photo of a holiday 2024-05-17.jpeg " * 9]), Tile(image, ["b"])]],
        tmp_path / "a.png",
        title="",
        side=200,
    )
    with Image.open(tmp_path / "a.png") as picture:
        below = np.array(picture.convert("L"))[20 + 192 :]
    assert (below[:, 0:2] == 255).all() and (below[:, -2:] == 255).all() and (below < 128).any()
    assert torch.equal(to_rgb(image), torch.full((32, 32, 3), 128, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"cannot write .*a\.nothing: .* not supported"):
        save_tiles([[Tile(image)]], tmp_path / "a.nothing", title="")
