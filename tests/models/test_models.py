"""What holds for every model."""

import pytest
import torch

import backbones.random as random
import backbones.tree as tree
from backbones.models import MODELS

SMALL = {name: {"depth": 2} if name.startswith("vit") else {} for name in MODELS}
NAMES = ["vit-tiny", "vit-small", "resnet18", "resnet50"]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def make(name: str, image_shape: tuple[int, int, int] = (3, 32, 32)):
    model = MODELS[name](image_shape, 10, **SMALL[name])
    return model, *model.init(random.generator(0))


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=random.generator(1)).contiguous(memory_format=torch.channels_last)


def test_init_is_a_function_of_the_generator(name: str) -> None:
    model, params, model_state = make(name)
    torch.manual_seed(7)  # the global generator has no part in it
    assert tree.sha256(model.init(random.generator(0))) == tree.sha256((params, model_state))
    assert tree.sha256(model.init(random.generator(1))[0]) != tree.sha256(params)


def test_init_fills_every_leaf(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.nn.Module.to_empty

    def to_nan(module: torch.nn.Module, **kwargs: object) -> torch.nn.Module:
        module = empty(module, **kwargs)
        for leaf in (*module.parameters(), *module.buffers()):
            leaf.data.fill_(torch.nan if leaf.is_floating_point() else 77)
        return module

    monkeypatch.setattr(torch.nn.Module, "to_empty", to_nan)
    _, params, model_state = make(name)
    assert all(leaf.isfinite().all() and (leaf != 77).all() for leaf in tree.leaves((params, model_state)))


def test_apply_leaves_its_arguments_alone(name: str) -> None:
    model, params, model_state = make(name)
    batch = images(2, 3, 32, 32)
    before = tree.sha256((params, model_state, batch))
    logits, new_model_state = model.apply(params, model_state, batch, train=True)
    assert logits.shape == (2, 10)
    assert tree.sha256((params, model_state, batch)) == before
    if model_state:
        assert tree.sha256(new_model_state) != tree.sha256(model_state)
    assert tree.sha256(model.apply(params, model_state, batch, train=False)[1]) == tree.sha256(model_state)


def test_gradients_reach_every_parameter(name: str) -> None:
    model, params, model_state = make(name)
    batch = images(4, 3, 32, 32)
    grads = torch.func.grad(lambda p: model.apply(p, model_state, batch, train=True)[0].square().sum())(params)
    assert [key for key, leaf in grads.items() if not leaf.abs().sum() > 0] == []


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 48)])
def test_any_image_shape(name: str, shape: tuple[int, int, int]) -> None:
    model, params, model_state = make(name, shape)
    assert model.apply(params, model_state, images(2, *shape), train=False)[0].shape == (2, 10)


def test_float64_runs(name: str) -> None:
    model, params, model_state = make(name)
    params, model_state = (tree.map(lambda leaf: leaf.double(), part) for part in (params, model_state))
    assert model.apply(params, model_state, images(2, 3, 32, 32).double(), train=True)[0].dtype == torch.float64


def test_bfloat16_by_autocast_is_near(name: str) -> None:
    model, params, model_state = make(name)
    batch = images(8, 3, 32, 32)
    exact, _ = model.apply(params, model_state, batch, train=False)
    with torch.autocast("cpu", torch.bfloat16):
        near, _ = model.apply(params, model_state, batch, train=False)
    assert 0 < (near - exact).norm() / exact.norm() < 0.05
