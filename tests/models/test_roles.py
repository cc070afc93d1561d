"""The role of each leaf of a model."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import backbones.random as random
from backbones.models import MODELS, from_module
from backbones.models.base import apply_head
from backbones.types import Role


def is_hidden_matrix(name: str, leaf: Tensor) -> bool:
    """The rule by which Muon chose its leaves before models declared roles."""
    first_and_last = ("stem.", "patch_embed.", "whiten.", "features.0.", "head.")
    return leaf.ndim >= 2 and name.endswith("weight") and not name.startswith(first_and_last)


@pytest.mark.parametrize("name", MODELS)
def test_matrices_of_the_trunk_are_what_muon_orthogonalises(name: str) -> None:
    model = MODELS[name]((3, 32, 32), 10)
    leaves = {name: leaf for name, leaf in model.skeleton.named_parameters() if leaf.requires_grad}
    assert model.roles.keys() == leaves.keys()
    hidden = {name for name, leaf in leaves.items() if is_hidden_matrix(name, leaf)}
    assert {name for name, role in model.roles.items() if (role.part, role.kind) == ("trunk", "matrix")} == hidden
    assert {name for name, role in model.roles.items() if role.part == "head"} == {
        name for name in leaves if name.startswith("head.")
    }


@pytest.mark.parametrize(
    ("name", "leaf", "role"),
    [
        ("vit-tiny", "cls_token", Role("stem", "embedding", 0)),
        ("vit-tiny", "pos_embed", Role("stem", "embedding", 0)),
        ("vit-tiny", "patch_embed.bias", Role("stem", "bias", 0)),
        ("vit-tiny", "norm.bias", Role("trunk", "norm", 13)),
        ("vgg11-bn", "features.0.weight", Role("stem", "matrix", 0)),
        ("vgg11-bn", "features.1.weight", Role("trunk", "norm", 1)),
        ("vgg11-bn", "features.8.weight", Role("trunk", "matrix", 3)),  # behind two pools
        ("vgg11-bn", "features.12.bias", Role("trunk", "norm", 3)),
        ("vgg11-bn", "head.2.weight", Role("head", "matrix", 6)),
        ("resnet18", "stem.1.weight", Role("stem", "norm", 0)),
        ("resnet18", "head.bias", Role("head", "bias", 5)),
        ("convnext-atto", "stages.0.1.0.scale", Role("trunk", "scale", 1)),
        ("convnext-atto", "stem.1.bias", Role("stem", "norm", 0)),
        ("airbench", "whiten.bias", Role("stem", "bias", 0)),
        ("airbench", "stages.0.norm1.bias", Role("trunk", "norm", 1)),
    ],
)
def test_roles(name: str, leaf: str, role: Role) -> None:
    assert MODELS[name]((3, 32, 32), 10).roles[leaf] == role


def test_layers_with_parametrizations_are_those_that_they_were() -> None:
    """Also where they have no parameters of their own any more, and in a run."""

    def make() -> nn.Module:
        stem = spectral_norm(nn.Conv2d(3, 4, 3, bias=False))
        head = weight_norm(nn.Linear(8, 10))
        return nn.Sequential(stem, nn.Flatten(), weight_norm(nn.Linear(4, 8)), head)

    model = from_module(make)
    assert {name: (role.part, role.kind) for name, role in model.roles.items()} == {
        "0.parametrizations.weight.original": ("stem", "matrix"),
        "2.bias": ("trunk", "bias"),
        "2.parametrizations.weight.original0": ("trunk", "scale"),
        "2.parametrizations.weight.original1": ("trunk", "matrix"),
        "3.bias": ("head", "bias"),
        "3.parametrizations.weight.original0": ("head", "scale"),
        "3.parametrizations.weight.original1": ("head", "matrix"),
    }
    params, model_state = model.init(random.generator(0))
    images = torch.randn(2, 3, 3, 3)
    pooled = model.features(params, model_state, images)["pooled"]
    logits, _ = model.apply(params, model_state, images, train=False)
    torch.testing.assert_close(apply_head(model, params, model_state, pooled), logits)


def test_a_block_of_layers_in_a_row_is_one_with_its_norm() -> None:
    layers = [
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1),
    ]
    roles = from_module(lambda: nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 10))).roles
    depths = {name: role.depth for name, role in roles.items() if name.endswith("weight")}
    assert depths == {f"{i}.weight": depth for i, depth in zip([0, 1, 3, 4, 5, 7], [0, 1, 2, 2, 3, 4], strict=True)}


def test_layers_under_torchs_older_hooks_are_those_that_they_were() -> None:
    """Spectral norm, weight norm and pruning."""

    def make() -> nn.Module:
        layers = [nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)]
        nn.utils.spectral_norm(layers[1])
        prune.l1_unstructured(layers[2], "weight", 0.5)
        with pytest.warns(FutureWarning, match="weight_norm"):
            return nn.Sequential(*layers, nn.utils.weight_norm(nn.Conv2d(4, 4, 1)), nn.Flatten(), nn.Linear(4, 10))

    roles = from_module(make).roles
    assert {name for name, role in roles.items() if role.part == "trunk" and role.kind == "matrix"} == {
        *("1.weight_orig", "2.weight_orig", "3.weight_v")
    }
    assert roles["3.weight_g"].kind == "scale"
