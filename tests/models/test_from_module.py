"""Any `nn.Module` as a model: the module itself, called as its authors do, is the oracle."""

from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision.models
from helpers.runs import relative_error
from torch import Tensor, nn
from torch.func import functional_call

import backbones.random as random
import backbones.tree as tree
from backbones.errors import InputError
from backbones.models import Model, from_module, with_pretrained
from backbones.models.check import check_logits
from backbones.models.from_module import _has_channels_last
from backbones.types import ModelState, Params, Role

pytestmark = pytest.mark.slow


class MyNet(nn.Module):
    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        self.dropout, self.out = nn.Dropout(0.5), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.dropout(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


class Tied(nn.Module):
    """One matrix, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 10)
        self.up.weight = self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        return self.head(self.down(x) * self.up(x))


class Unusual(nn.Module):
    """What a constructor on the meta device could not do, and state of every other kind."""

    def __init__(self) -> None:
        super().__init__()
        rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
        self.head = nn.Linear(3, 10)
        self.frozen = nn.Parameter(torch.tensor([0.5, 1.0, 2.0]), requires_grad=False)
        self.register_buffer("table", torch.tensor(rates), persistent=False)
        self.register_buffer("calls", torch.tensor(0.0))
        self.factor = torch.tensor(3.0)  # neither a parameter nor a buffer

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls = self.calls + 1  # replaced, not written into
        return torch.log_softmax(self.head(x.mean((2, 3)) * self.frozen + self.table * self.factor), dim=1)


class Counts(nn.Module):
    """Writes into a buffer in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)
        self.register_buffer("calls", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(x.mean((2, 3)))


class Averages(nn.Module):
    """Writes into a parameter that is not trained."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)
        self.average = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.average.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        return self.head(x.mean((2, 3)) - self.average)


def timm_model(name: str) -> Callable[[], nn.Module]:
    return partial(timm.create_model, name, num_classes=10)


def torchvision_model(name: str) -> Callable[[], nn.Module]:
    return partial(torchvision.models.get_model, name, num_classes=10)


MODULES = {
    "MyNet": (MyNet, 32),
    "Tied": (Tied, 32),
    "Unusual": (Unusual, 32),
    "torchvision mobilenet_v3_small": (torchvision_model("mobilenet_v3_small"), 32),
    "torchvision squeezenet1_1": (torchvision_model("squeezenet1_1"), 32),
    "timm test_resnet": (timm_model("test_resnet"), 32),
    "timm test_vit": (timm_model("test_vit"), 160),
    "timm vit_tiny": (partial(timm_model("vit_tiny_patch16_224"), img_size=32, patch_size=8), 32),
}
"""Name -> constructor, height and width of an image."""


def images(size: int) -> Tensor:
    return torch.randn(4, 3, size, size, generator=random.generator(1), dtype=torch.float64)


def in_float64(trees: tuple[Params, ModelState]) -> tuple[Params, ModelState]:
    return tree.map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, trees)


def loaded(make: Callable[[], nn.Module], params: Params, model_state: ModelState) -> nn.Module:
    """The module itself, with these leaves."""
    module = make().double()
    leaves = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert leaves.keys() == params.keys() | model_state.keys()
    with torch.no_grad():
        for name, leaf in {**params, **model_state}.items():
            leaves[name].copy_(leaf)
    return module


@pytest.mark.parametrize("name", MODULES)
def test_logits_gradients_and_buffers_are_those_of_the_module(name: str) -> None:
    make, size = MODULES[name]
    model = from_module(make)
    params, model_state = in_float64(model.init(random.generator(0)))
    module = loaded(make, params, model_state)
    before = tree.sha256((params, model_state))

    random.seed_torch(3)
    expected = module.train()(images(size))
    expected.square().sum().backward()
    random.seed_torch(3)

    def loss(params: Params) -> tuple[Tensor, tuple[Tensor, ModelState]]:
        logits, new_model_state = model.apply(params, model_state, images(size), train=True)
        return logits.square().sum(), (logits, new_model_state)

    grads, (logits, new_model_state) = torch.func.grad(loss, has_aux=True)(params)
    assert relative_error(logits, expected) < 1e-10
    for key, leaf in module.named_parameters():
        assert not leaf.requires_grad or torch.allclose(grads[key], leaf.grad, rtol=1e-8, atol=1e-8), key
    for key, buffer in module.named_buffers():
        torch.testing.assert_close(new_model_state[key], buffer, rtol=1e-10, atol=1e-10)

    logits, same_model_state = model.apply(params, new_model_state, images(size), train=False)
    assert relative_error(logits, module.eval()(images(size))) < 1e-10
    assert tree.sha256(same_model_state) == tree.sha256(new_model_state)
    assert tree.sha256((params, model_state)) == before


@pytest.mark.parametrize("name", MODULES)
def test_init_is_the_constructor_as_a_function_of_the_generator(name: str) -> None:
    make, _ = MODULES[name]
    model = from_module(make)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    trees = model.init(random.generator(0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert tree.sha256(model.init(random.generator(0))) == tree.sha256(trees)
    assert tree.sha256(model.init(random.generator(1))) != tree.sha256(trees)
    assert all(leaf.is_contiguous(memory_format=torch.channels_last) for leaf in trees[0].values() if leaf.ndim == 4)
    assert all(leaf.is_meta for leaf in (*model.skeleton.parameters(), *model.skeleton.buffers()))
    assert model.roles.keys() == trees[0].keys()

    module = make()
    deviations = {key: leaf.std() for key, leaf in module.named_parameters() if leaf.numel() > 1000}
    for key, deviation in deviations.items():
        torch.testing.assert_close(trees[0][key].std(), deviation, rtol=0.2, atol=1e-3)
    if not deviations:
        assert name in ("MyNet", "Tied", "Unusual")


def test_buffers_frozen_and_tied_parameters() -> None:
    params, model_state = from_module(Unusual).init(random.generator(0))
    assert params.keys() == {"head.weight", "head.bias"}
    assert model_state.keys() == {"frozen", "table", "calls"}
    assert model_state["frozen"].tolist() == [0.5, 1, 2] and model_state["table"].tolist() == [0, 0.5, 1]
    assert not model_state["frozen"].requires_grad
    params, _ = from_module(Tied).init(random.generator(0))
    assert params.keys() == {"down.weight", "down.bias", "up.bias", "head.weight", "head.bias"}


def test_roles() -> None:
    roles = from_module(MyNet).roles
    assert roles == {
        "conv.weight": Role("stem", "matrix", 0),
        "conv.bias": Role("stem", "bias", 0),
        "norm.weight": Role("trunk", "norm", 1),  # no container says what the blocks are
        "norm.bias": Role("trunk", "norm", 1),
        "out.weight": Role("head", "matrix", 1),
        "out.bias": Role("head", "bias", 1),
    }
    roles = from_module(torchvision_model("vit_b_32")).roles
    attention = "encoder.layers.encoder_layer_0.self_attention"
    assert roles[f"{attention}.in_proj_weight"] == Role("trunk", "matrix", 1)
    assert roles[f"{attention}.in_proj_bias"] == Role("trunk", "bias", 1)
    assert roles["class_token"] == roles["encoder.pos_embedding"] == Role("trunk", "embedding", 0)
    assert roles["conv_proj.weight"].part == "stem" and roles["heads.head.weight"].part == "head"
    roles = from_module(timm_model("test_convnext")).roles
    assert roles["stages.0.blocks.0.gamma"][:2] == ("trunk", "scale")
    roles = from_module(torchvision_model("squeezenet1_1")).roles
    assert roles["classifier.1.weight"][:2] == ("head", "matrix")
    assert [name for name, role in roles.items() if role.part == "stem"] == ["features.0.weight", "features.0.bias"]
    roles = from_module(lambda: nn.Sequential(nn.Embedding(5, 2), nn.PReLU(), nn.Conv2d(2, 3, 3))).roles
    assert {role.part for role in roles.values()} == {"stem", "trunk"}  # a 3x3 convolution is not a head
    assert roles["0.weight"].kind == "embedding" and roles["1.weight"].kind == "scale"


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("MyNet", "out"),
        ("torchvision mobilenet_v3_small", "classifier.3"),
        ("timm test_resnet", "fc"),
        ("timm vit_tiny", "head"),
    ],
)
def test_pooled_is_what_enters_the_head(name: str, head: str) -> None:
    make, size = MODULES[name]
    model = from_module(make)
    params, model_state = in_float64(model.init(random.generator(0)))
    features = model.features(params, model_state, images(size))
    assert list(features)[-1] == "pooled" and features["pooled"].ndim == 2
    weights = {key.removeprefix(f"{head}."): leaf for key, leaf in params.items() if key.startswith(f"{head}.")}
    logits, _ = model.apply(params, model_state, images(size), train=False)
    assert torch.equal(functional_call(model.skeleton.get_submodule(head), weights, features["pooled"]), logits)


def test_features_are_the_outputs_of_its_own_submodules() -> None:
    """Also of those whose output the next layer overwrites. A hook of torch's is the oracle."""
    model = from_module(torchvision_model("resnet18"))
    params, model_state = in_float64(model.init(random.generator(0)))
    module = loaded(torchvision_model("resnet18"), params, model_state).eval()
    expected: dict[str, Tensor] = {}
    names = ["conv1", "bn1", "relu", "maxpool", "layer1.0", "layer1.1", "layer1", "layer4.1", "layer4", "avgpool"]
    for name in names:
        module.get_submodule(name).register_forward_hook(
            lambda layer, args, output, name=name: expected.update({name: output.clone()})
        )
    module(images(64))
    features = model.features(params, model_state, images(64))
    assert [name for name in features if name in names] == names and "fc" not in features
    for name in names:
        torch.testing.assert_close(features[name], expected[name])
    assert torch.equal(features["pooled"], features["avgpool"].flatten(1))


def test_maps_with_channels_last_are_turned() -> None:
    model = from_module(torchvision_model("swin_v2_t"))
    params, model_state = model.init(random.generator(0))
    features = model.features(params, model_state, images(64).float())
    assert features["features.1"].shape == (4, 96, 16, 16) and features["features.7"].shape == (4, 768, 2, 2)
    assert torch.allclose(features["norm"].mean((2, 3)), features["pooled"], atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 8, 13, 192), (2, 192, 8, 13), (2, 4, 7, 384), (2, 384, 4, 7)])
def test_maps_of_images_whose_sides_do_not_divide(shape: tuple[int, ...]) -> None:
    """As swin pads them: of images of 60x100."""
    assert _has_channels_last(torch.zeros(shape), torch.Size((60, 100))) == (shape[3] > 100)


def test_it_compiles_and_vmaps() -> None:
    model = from_module(MyNet)
    trees = [model.init(random.generator(seed)) for seed in range(2)]
    stacked = tree.map(lambda *leaves: torch.stack(leaves), *trees)
    batch = images(32).float()
    for function in (partial(model.apply, train=True), partial(model.apply, train=False), model.features):
        torch._dynamo.reset()
        random.seed_torch(3)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(*trees[1], batch)
        random.seed_torch(3)
        together = torch.func.vmap(function, in_dims=(0, 0, None), randomness="same")(*stacked, batch)
        random.seed_torch(3)
        expected = function(*trees[1], batch)
        torch.testing.assert_close(compiled, expected)
        torch.testing.assert_close(tree.map(lambda leaf: leaf[1], together), expected)


def test_a_head_of_another_size_is_initialised_anew() -> None:
    def make(num_classes: int) -> Model:
        return from_module(partial(torchvision.models.mobilenet_v3_small, num_classes=num_classes))

    weights = tree.map(torch.clone, make(10).init(random.generator(0)))
    model, notes = with_pretrained(make(7), {**weights[0], **weights[1]}, (3, 32, 32))
    fresh = ["classifier.3.weight", "classifier.3.bias"]
    assert notes == [f"missing or of another size, and initialised: {', '.join(fresh)}"]
    params, model_state = model.init(random.generator(1))
    assert tree.sha256(model_state) == tree.sha256(weights[1])
    assert all(torch.equal(leaf, weights[0][name]) for name, leaf in params.items() if name not in fresh)
    del weights[0]["features.0.0.weight"]
    with pytest.raises(InputError, match=r"features.0.0.weight is missing, expected \(16, 3, 3, 3\)"):
        with_pretrained(make(10), {**weights[0], **weights[1]}, (3, 32, 32))


def test_buffers_that_are_not_persistent_may_be_absent_from_pretrained_weights() -> None:
    module = Unusual()
    model, notes = with_pretrained(from_module(Unusual), module.state_dict(), (3, 32, 32))
    params, model_state = model.init(random.generator(0))
    assert notes == [] and torch.equal(params["head.weight"], module.head.weight)
    assert model_state["table"].tolist() == [0, 0.5, 1]


def test_buffers_that_are_not_persistent_and_of_other_images_are_made_anew() -> None:
    """As the masks of a Swin transformer."""

    def make(size: int) -> nn.Module:
        module = nn.Sequential(nn.Flatten(), nn.Linear(3, 10))
        module.register_buffer("table", torch.arange(size), persistent=False)
        return module

    params, model_state = from_module(partial(make, 4)).init(random.generator(0))
    started, notes = with_pretrained(from_module(partial(make, 9)), {**params, **model_state}, (3, 1, 1))
    assert notes == [] and started.init(random.generator(1))[1]["table"].tolist() == [*range(9)]


def test_the_arguments_of_apply_stay_as_they_are() -> None:
    model = from_module(Counts)
    params, model_state = model.init(random.generator(0))
    for train, calls in ((False, 0), (True, 1)):
        _, new = model.apply(params, model_state, images(8).float(), train=train)
        assert (model_state["calls"], new["calls"]) == (0, calls)


def test_a_module_that_writes_into_its_parameters_is_refused() -> None:
    with pytest.raises(InputError, match=r"^--model x: Averages writes into its parameter average when it is called"):
        check_logits("--model x", from_module(partial(Averages, 10)), (3, 8, 8), 10)


def test_weights_of_a_module_with_tied_parameters() -> None:
    module = Tied()
    model, notes = with_pretrained(from_module(Tied), module.state_dict(), (3, 32, 32))
    params, _ = model.init(random.generator(0))
    assert notes == [] and torch.equal(params["down.weight"], module.up.weight)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_weight_that_is_computed_from_parameters() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(12, 10)))

    model, x = from_module(make), torch.randn(2, 3, 2, 2)
    params, model_state = model.init(random.generator(0))
    assert params.keys() == {"1.bias", "1.weight_g", "1.weight_v"}
    grads = torch.func.grad(lambda params: model.apply(params, model_state, x, train=True)[0].square().sum())(params)
    assert all(leaf.abs().sum() > 0 for leaf in grads.values())


class Cosine(nn.Module):
    """Its forward reads the weight of its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.linear(F.normalize(self.conv(images).mean((2, 3))), F.normalize(self.head.weight))


def test_messages_for_modules_that_cannot_be_used() -> None:
    model = from_module(Cosine)
    with pytest.raises(
        InputError, match="Cosine has no features: without its last layer it cannot be called: 'Identity'"
    ):
        model.features(*model.init(random.generator(0)), images(8).float())
    with pytest.raises(InputError, match=r"0\.weight of Sequential has no shape yet; give its layer the number of"):
        from_module(lambda: nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(InputError, match=r"0\.weight of Sequential is complex, and optimizers take real numbers"):
        from_module(lambda: nn.Sequential(nn.Linear(3, 3, dtype=torch.complex64)))
    model = from_module(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    with pytest.raises(InputError, match="Sequential has no features: its last layer is not linear"):
        model.features(*model.init(random.generator(0)), images(8).float())
