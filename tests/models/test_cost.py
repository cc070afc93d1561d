from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from backbones.models import MODELS, from_module
from backbones.models.cost import count_activations, layer_table, measure_cost, measure_latency
from backbones.run.run import describe_run
from experiments.digits import digits_resnet18


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_params", "giga_macs"),
    [
        ("vgg11", 9_225_610, 0.1528),
        ("vgg19-bn", 20_035_018, 0.3987),
        ("resnet18", 11_173_962, 0.5567),
        ("preactresnet18", 11_173_066, 0.5568),
        ("resnext29-32x4d", 4_775_754, 0.6800),
        ("se-resnet18", 11_263_042, 0.5570),
        ("cbam-resnet18", 11_263_834, 0.5573),
        ("mobilenet", 3_217_226, 0.0472),
        ("shufflenet-g8", 913_138, 0.0456),
        ("vit-tiny", 5_362_378 + 2 * 192, 0.3666),  # and the final LayerNorm, which the reference has not
    ],
)
def test_cifar_models_cost_what_the_reference_does(name: str, num_params: int, giga_macs: float) -> None:
    cost = measure_cost(MODELS[name]((3, 32, 32), 10), (3, 32, 32))
    assert cost.num_params == num_params
    assert cost.macs / 1e9 == pytest.approx(giga_macs, rel=0.001)


@pytest.mark.parametrize(
    ("name", "num_params"), [("wrn-16-8", 10_961_370), ("wrn-28-10", 36_479_194), ("wrn-40-4", 8_949_210)]
)
def test_wide_resnets_have_the_published_sizes(name: str, num_params: int) -> None:
    """Table 4 of arXiv 1605.07146 rounds them to 11.0, 36.5 and 8.9 millions."""
    assert measure_cost(MODELS[name]((3, 32, 32), 10), (3, 32, 32)).num_params == num_params


def test_activations_are_the_outputs_of_convolutions_and_matrix_products() -> None:
    activations = count_activations(MODELS["airbench"]((3, 32, 32), 10), (3, 32, 32))
    sizes = [(24, 31), (64, 31), (64, 15), (256, 15), (256, 7), (256, 7), (256, 3)]
    assert activations == sum(channels * side**2 for channels, side in sizes) + 10


def test_activations_of_attention_are_its_two_products() -> None:
    activations = count_activations(MODELS["vit-tiny"]((3, 32, 32), 10, depth=2), (3, 32, 32))
    tokens, heads, width, mlp_width = 65, 3, 192, 768
    block = tokens * (3 * width + width + mlp_width + width) + heads * tokens**2 + tokens * width
    assert activations == 64 * width + 2 * block + 10


def test_layers_add_up_to_the_model() -> None:
    lines = layer_table(MODELS["resnet18"]((3, 32, 32), 10), (3, 32, 32), depth=1).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert rows[0] == ["module", "#parameters", "#MACs", "#activations"]
    assert [row[0] for row in rows[2:]] == ["model", "stem", "stages", "head"]
    assert rows[2][1:] == ["11.174M", "0.557G", "0.614M"]


def test_latency_is_measured_after_a_real_pass() -> None:
    model = MODELS["airbench"]((3, 32, 32), 10)
    shapes = []
    spy = model._replace(apply=lambda *args, **kwargs: shapes.append(args[2].shape) or model.apply(*args, **kwargs))
    assert measure_latency(spy, (3, 32, 32), batch_size=5, device=torch.device("cpu"), seconds=0.1) > 0
    assert set(shapes) == {(5, 3, 32, 32)}


class Odd(nn.Module):
    """A convolution whose padding is given in words, and attention with fewer keys than queries."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 5, padding="same", bias=False), nn.Linear(8, 10, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv(images).flatten(2).mT  # [B, 64, 8]
        return self.head(nn.functional.scaled_dot_product_attention(x, x[:, :6], x[:, 6:12]).mean(1))


def test_what_library_models_are_made_of_is_counted_too() -> None:
    cost = measure_cost(from_module(Odd), (3, 8, 8))
    conv, attention, head = 64 * 8 * 3 * 25, 64 * 6 * (8 + 8), 8 * 10
    assert cost.macs == conv + attention + head
    assert count_activations(from_module(Odd), (3, 8, 8)) == 64 * 8 + 64 * (6 + 8) + 10


@torch.compile
def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


class Untraceable(Odd):
    """torch.jit traces no compiled function."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(doubled(images))


def test_a_model_that_cannot_be_traced_has_no_count() -> None:
    model = from_module(Untraceable)
    assert measure_cost(model, (3, 8, 8)) == (3 * 8 * 25 + 80, None)
    split = SimpleNamespace(size=5)
    dataset: Any = SimpleNamespace(info=SimpleNamespace(image_shape=(3, 8, 8)), train=split, test=split)
    shown = describe_run(digits_resnet18, dataset, measure_cost(model, (3, 8, 8)), torch.device("cpu"))
    assert "resnet18 (0.00 M parameters) on digits (5 + 5 images of 3x8x8)" in shown
