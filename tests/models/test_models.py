"""What holds for every model in MODELS."""

import inspect
from collections.abc import Callable, Hashable, Iterable
from functools import partial

import pytest
import torch
from conftest import relative_error
from torch import Tensor
from torch._subclasses import FakeTensorMode

import backbones.random as random
import backbones.tree as tree
from backbones.errors import InputError
from backbones.models import MODELS, Model
from backbones.models.convnext import DropPath
from backbones.types import ModelState, Params

Built = tuple[Model, Params, ModelState]


def shallow(name: str) -> partial[Model]:
    """The constructor, of two blocks, or two a stage, of what repeats more of them."""
    constructor = MODELS[name]
    if name.startswith(("vit", "mixer")):
        return partial(constructor, depth=2)
    if "resne" in name:
        *others, stage_depths = constructor.args
        stage_depths = tuple(min(depth, 2) for depth in stage_depths)
        return partial(constructor.func, *others, stage_depths, **constructor.keywords)
    return partial(constructor)


def first_of_each(names: Iterable[str], key: Callable[[str], Hashable]) -> list[str]:
    return list({key(name): name for name in reversed(list(names))}.values())[::-1]


DISTINCT = first_of_each(MODELS, lambda name: str(shallow(name)))
"""So cut, ResNet-34 is ResNet-18, and ResNet-101 is ResNet-50."""

KINDS = first_of_each(DISTINCT, lambda name: frozenset(map(type, shallow(name)((3, 32, 32), 10).skeleton.modules())))
"""One model for each set of kinds of layers, which are traced alike in any number and of any width."""

NAMES_AND_STEMS = [
    (name, {"stem": stem} if stem else {})
    for name in DISTINCT
    for stem in (["cifar", "imagenet"] if "stem" in inspect.signature(MODELS[name]).parameters else [None])
]


@pytest.fixture(scope="module", params=DISTINCT)
def built(request: pytest.FixtureRequest) -> Built:
    """The model and its trees; no test changes them."""
    model = shallow(request.param)((3, 32, 32), 10)
    return model, *model.init(random.generator(0))


def images() -> Tensor:
    return torch.randn((2, 3, 32, 32), generator=random.generator(1)).contiguous(memory_format=torch.channels_last)


def test_init_is_a_function_of_the_generator(built: Built) -> None:
    model, *trees = built
    torch.manual_seed(7)  # the global generator has no part in it
    assert tree.sha256(model.init(random.generator(0))) == tree.sha256(tuple(trees))
    assert tree.sha256(model.init(random.generator(1))[0]) != tree.sha256(trees[0])


def test_init_fills_every_leaf(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.nn.Module.to_empty

    def to_nan(module: torch.nn.Module, **kwargs: object) -> torch.nn.Module:
        module = empty(module, **kwargs)
        for leaf in (*module.parameters(), *module.buffers()):
            leaf.data.fill_(torch.nan if leaf.is_floating_point() else 77)
        return module

    monkeypatch.setattr(torch.nn.Module, "to_empty", to_nan)
    trees = built[0].init(random.generator(0))
    assert all(leaf.isfinite().all() and (leaf != 77).all() for leaf in tree.leaves(trees))


def test_apply_leaves_its_arguments_alone_and_gradients_reach_every_parameter(built: Built) -> None:
    model, params, model_state = built
    batch = images()
    before = tree.sha256((params, model_state, batch))

    def loss(params: Params) -> tuple[Tensor, ModelState]:
        logits, new_model_state = model.apply(params, model_state, batch, train=True)
        assert logits.shape == (2, 10)
        return (logits * torch.arange(20.0).view(2, 10)).sum(), new_model_state

    grads, new_model_state = torch.func.grad(loss, has_aux=True)(params)
    assert [key for key, leaf in grads.items() if not leaf.abs().sum() > 0] == []
    assert [key for key, leaf in new_model_state.items() if torch.equal(leaf, model_state[key])] == []
    _, same_model_state = model.apply(params, model_state, batch, train=False)
    assert tree.sha256((params, same_model_state, batch)) == before


@pytest.mark.parametrize("name", KINDS)
def test_compiled_is_eager(name: str) -> None:
    model = shallow(name)((3, 32, 32), 10)
    trees = model.init(random.generator(0))
    apply = partial(model.apply, train=True)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = apply(*trees, images())
        compiled = torch.compile(apply, fullgraph=True, backend="aot_eager")(*trees, images())
    for got, wanted in zip(tree.leaves(compiled), tree.leaves(expected), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


# Attention has no batching rule on the CPU: vmap computes it one by one, and says so.
@pytest.mark.filterwarnings("ignore:There is a performance drop.*scaled_dot_product:UserWarning")
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_vmap_over_models_is_one_call_each(name: str, train: bool) -> None:
    model = shallow(name)((3, 32, 32), 10)
    trees = [model.init(random.generator(seed)) for seed in range(3)]
    stacked = tree.map(lambda *leaves: torch.stack(leaves), *trees)
    batch = images()
    with torch.no_grad():
        together = torch.func.vmap(partial(model.apply, train=train), in_dims=(0, 0, None))(*stacked, batch)
        for i, (params, model_state) in enumerate(trees):
            logits, new_model_state = model.apply(params, model_state, batch, train=train)
            assert relative_error(together[0][i], logits) < 1e-5
            for key, leaf in new_model_state.items():
                torch.testing.assert_close(together[1][key][i], leaf, rtol=1e-4, atol=1e-5)


def test_float64_runs_and_bfloat16_by_autocast_is_near(built: Built) -> None:
    model, *trees = built
    batch = images()
    with torch.no_grad():
        logits, _ = model.apply(*trees, batch, train=False)
        params, model_state = tree.map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tuple(trees))
        exact, _ = model.apply(params, model_state, batch.double(), train=False)
        with torch.autocast("cpu", torch.bfloat16):
            rounded, _ = model.apply(*trees, batch, train=False)
    assert exact.dtype == torch.float64
    assert 0 < relative_error(logits, exact) < 1e-5
    assert 1e-4 < relative_error(rounded, exact) < 0.1


@pytest.mark.parametrize(("name", "stem"), NAMES_AND_STEMS)
def test_any_image(name: str, stem: dict[str, str]) -> None:
    """Shapes alone: nothing is computed."""
    for shape in ((3, 16, 16), (1, 28, 28), (3, 64, 48), (1, 224, 224)):
        make = partial(shallow(name), shape, 7, **stem)
        if name.startswith("convnext") and stem["stem"] == "imagenet" and shape[1] < 32:
            with pytest.raises(InputError, match="pixels are too small; this model takes 32x32 or more"):
                make()
            continue
        model = make()
        with FakeTensorMode():
            params = {key: torch.empty(leaf.shape) for key, leaf in model.skeleton.named_parameters()}
            model_state = {key: torch.empty(leaf.shape) for key, leaf in model.skeleton.named_buffers()}
            logits, _ = model.apply(params, model_state, torch.empty(2, *shape), train=False)
        assert logits.shape == (2, 7)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    branch = DropPath(0.2)
    x = torch.ones(1000, 2, 3, 3)
    y = branch(x)
    assert torch.equal(y, y[:, :1, :1, :1].expand_as(y))
    assert set(y.unique().tolist()) == {0.0, 1.25}
    assert 0.15 < (y == 0).float().mean() < 0.25
    assert torch.equal(branch.eval()(x), x)


@pytest.mark.parametrize(("name", "options"), [("convnext-atto", {"drop_path": 0.5}), ("wrn-16-8", {"dropout": 0.3})])
def test_what_is_dropped_follows_the_seed_and_only_in_training(name: str, options: dict[str, float]) -> None:
    model = MODELS[name]((3, 32, 32), 10, **options)
    params, model_state = model.init(random.generator(0))
    for key in params:
        if key.endswith(".scale"):
            params[key].fill_(1)  # as after some training: a fresh ConvNeXt hardly feels its branches

    def logits(seed: int, train: bool) -> Tensor:
        random.seed_torch(seed)
        with torch.no_grad():
            return model.apply(params, model_state, images(), train=train)[0]

    assert torch.equal(logits(0, train=True), logits(0, train=True))
    assert not torch.equal(logits(0, train=True), logits(1, train=True))
    assert torch.equal(logits(0, train=False), logits(1, train=False))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("se-resnet18", {"reduction": 0}, "reduction is 0; it must be from 1 to 64"),
        ("cbam-resnet18", {"reduction": 65}, "reduction is 65; it must be from 1 to 64"),
        ("wrn-16-8", {"dropout": 1.0}, r"dropout is 1.0; it must be at least 0 and below 1"),
        ("vgg11", {"dropout": -0.1}, r"dropout is -0.1; it must be at least 0 and below 1"),
        ("convnext-tiny", {"drop_path": 1.5}, r"drop_path is 1.5; it must be at least 0 and below 1"),
        ("mixer-tiny", {"depth": 0}, "depth is 0; it must be 1 or more"),
        ("mixer-tiny", {"patch_size": 5}, "a patch size of 5 does not divide images of 32x32 pixels"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MODELS[name]((3, 32, 32), 10, **options)
