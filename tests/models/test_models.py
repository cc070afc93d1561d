"""What holds for every model in MODELS."""

import inspect
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from functools import partial

import pytest
import torch
from helpers.runs import relative_error
from helpers.shallow import images, shallow
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

import backbones.random as random
import backbones.tree as tree
from backbones.errors import InputError
from backbones.models import FAMILIES, MODELS, Model
from backbones.models.base import Backbone, make_constructor, with_memory
from backbones.models.layers import DropPath, drop_paths, init_conv_net
from backbones.ranges import range_of
from backbones.types import ModelState, Params

pytestmark = pytest.mark.slow

Built = tuple[Model, Params, ModelState]


def first_of_each(names: Iterable[str], key: Callable[[str], Hashable]) -> list[str]:
    return list({key(name): name for name in reversed(list(names))}.values())[::-1]


DISTINCT = first_of_each(MODELS, lambda name: str(shallow(name)))
"""When cut, ResNet-34 is ResNet-18, ResNet-101 is ResNet-50, and every ViT is ViT-Tiny."""

ONE_OF_EACH_FILE = [names[0] for names in FAMILIES.values()]
"""For what does not depend on the number and the width of layers, such as tracing."""

NAMES_AND_STEMS = [
    (name, {"stem": stem} if stem else {})
    for name in ONE_OF_EACH_FILE
    for stem in (["cifar", "imagenet"] if "stem" in inspect.signature(MODELS[name]).parameters else [None])
]


@pytest.fixture(scope="module", params=DISTINCT)
def built(request: pytest.FixtureRequest) -> Built:
    """The model and its trees; no test changes them."""
    model = shallow(request.param)((3, 32, 32), 10)
    return model, *model.init(random.generator(0))


def test_init_is_a_function_of_the_generator(built: Built) -> None:
    model, *trees = built
    torch.manual_seed(7)  # the global generator does not matter
    assert tree.sha256(model.init(random.generator(0))) == tree.sha256(tuple(trees))
    assert tree.sha256(model.init(random.generator(1))[0]) != tree.sha256(trees[0])


def test_init_initialises_every_leaf(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_nan(skeleton: torch.nn.Module) -> torch.nn.Module:
        module = with_memory(skeleton)
        for leaf in (*module.parameters(), *module.buffers()):
            leaf.data.fill_(torch.nan if leaf.is_floating_point() else 77)
        return module

    monkeypatch.setattr("backbones.models.base.with_memory", with_nan)
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
    frozen = [name for name, leaf in model.skeleton.named_parameters() if not leaf.requires_grad]
    assert [key for key, leaf in new_model_state.items() if torch.equal(leaf, model_state[key])] == frozen
    _, same_model_state = model.apply(params, model_state, batch, train=False)
    assert tree.sha256((params, same_model_state, batch)) == before


FEWER_BLOCKS = {
    "mobilenet": ("mobilenet.BLOCKS", [(64, 1), (128, 2), (128, 1)]),
    "mobilenet-v2": ("mobilenet_v2.STAGES", [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 1, 2)]),
    "shufflenet-g2": ("shufflenet.STAGE_DEPTHS", (1, 2)),
}
"""Of those that `shallow` does not cut."""


@pytest.mark.parametrize("name", ONE_OF_EACH_FILE)
def test_compiled_is_eager(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in FEWER_BLOCKS:
        path, blocks = FEWER_BLOCKS[name]
        monkeypatch.setattr(f"backbones.models.{path}", blocks)
    model = shallow(name)((3, 32, 32), 10)
    trees = model.init(random.generator(0))
    apply = partial(model.apply, train=True)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = apply(*trees, images())
        compiled = torch.compile(apply, fullgraph=True, backend="eager")(*trees, images())
    for got, wanted in zip(tree.leaves(compiled), tree.leaves(expected), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


# Attention has no batching rule on the CPU: vmap computes it one by one, and warns.
@pytest.mark.filterwarnings("ignore:There is a performance drop.*scaled_dot_product:UserWarning")
@pytest.mark.parametrize("name", ONE_OF_EACH_FILE)
def test_vmap_over_models_is_one_call_each(name: str) -> None:
    model = shallow(name)((3, 32, 32), 10)
    trees = [model.init(random.generator(seed)) for seed in range(2)]
    stacked, batch = tree.stack(trees), images()
    for train in (False, True):
        apply = partial(model.apply, train=train)
        with torch.no_grad():
            together = torch.func.vmap(apply, in_dims=(0, 0, None))(*stacked, batch)
            for i, each in enumerate(trees):
                logits, new_model_state = apply(*each, batch)
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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnext-atto", {"drop_path": 0.5}),
        ("wrn-16-8", {"dropout": 0.3}),
        ("resnet18", {"drop_path": 0.5}),
        ("vit-tiny", {"drop_path": 0.5, "depth": 2}),
    ],
)
def test_dropping_follows_the_seed_and_is_off_in_evaluation(name: str, options: dict[str, float]) -> None:
    model = MODELS[name]((3, 32, 32), 10, **options)
    params, model_state = model.init(random.generator(0))
    for key in params:
        if key.endswith(".scale"):
            params[key].fill_(1)  # a new ConvNeXt scales its residual branches by 1e-6

    def logits(seed: int, train: bool) -> Tensor:
        random.seed_torch(seed)
        with torch.no_grad():
            return model.apply(params, model_state, images(), train=train)[0]

    assert torch.equal(logits(0, train=True), logits(0, train=True))
    assert not torch.equal(logits(0, train=True), logits(1, train=True))
    assert torch.equal(logits(0, train=False), logits(1, train=False))


@pytest.mark.parametrize("name", ["resnet18", "convnext-atto", "vit-tiny"])
def test_later_blocks_are_dropped_more_often(name: str) -> None:
    model = MODELS[name]((3, 32, 32), 10, drop_path=0.3)
    found = [each.probability for each in model.skeleton.modules() if isinstance(each, DropPath)]
    blocks = sorted({*found})
    assert found == sorted(found) and blocks == pytest.approx(torch.linspace(0, 0.3, len(blocks)).tolist())
    assert len(blocks) > 5


def test_a_single_block_is_dropped_as_often_as_the_last() -> None:
    assert drop_paths(0.3, 1) == [0.3] and drop_paths(0.3, 3) == pytest.approx([0.0, 0.15, 0.3])


def test_a_network_of_ones_own_may_tie_parameters() -> None:
    class Tied(Backbone):
        LAYERS = "blocks"

        def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
            super().__init__()
            self.stem = nn.Conv2d(image_shape[0], 4, 1)
            self.blocks = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
            self.blocks[1].weight = self.blocks[0].weight
            self.head = nn.Linear(4, num_classes, bias=False)

    model = make_constructor(Tied, init_conv_net)((3, 8, 8), 5)
    params, model_state = model.init(random.generator(0))
    assert "blocks.0.weight" in params and "blocks.1.weight" not in params
    assert model.apply(params, model_state, images()[:2, :, :8, :8], train=True)[0].shape == (2, 5)


@pytest.mark.parametrize("name", ["se-resnet18", "cbam-resnet18"])
def test_attention_is_as_narrow_as_it_is_told(name: str) -> None:
    params, _ = MODELS[name]((3, 32, 32), 10, reduction=4).init(random.generator(0))
    (narrow,) = (leaf for key, leaf in params.items() if key.startswith("stages.0.0.") and key.endswith("fc1.weight"))
    assert narrow.shape[0] == 64 // 4


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
def test_messages_for_options_out_of_range(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MODELS[name]((3, 32, 32), 10, **options)


def test_dropout_without_an_effect_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        MODELS["vgg11"]((3, 32, 32), 10, dropout=0.2)
    assert capsys.readouterr().err == ("warning: a dropout of 0.2 has no effect in a linear head; give the head mlp\n")


@pytest.mark.parametrize("name", MODELS)
def test_every_number_among_the_options_has_a_range(name: str) -> None:
    for option in inspect.signature(MODELS[name]).parameters.values():
        if option.kind is option.KEYWORD_ONLY and isinstance(option.default, int | float):
            wanted = range_of(option.annotation)
            assert wanted is not None and option.default in wanted
            value = type(option.default)(wanted.low - 1)
            with pytest.raises(InputError, match=f"{option.name} is {value}; it must be {wanted}"):
                MODELS[name]((3, 32, 32), 10, **{option.name: value})


class CountOperators(TorchDispatchMode):
    """How often each operator of torch is called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.counts[str(operator)] += 1
        return operator(*args, **kwargs or {})


def check_head_of_pooled_is_apply(model: Model, params: Params, model_state: ModelState) -> None:
    """To the last bit, and without an operator more."""
    head = {name.removeprefix("head."): leaf for name, leaf in params.items() if model.roles[name].part == "head"}
    with torch.no_grad():
        with CountOperators() as in_parts:
            features = model.features(params, model_state, images())
            logits = functional_call(model.skeleton.get_submodule("head"), head, features["pooled"])
        with CountOperators() as in_whole:
            expected, _ = model.apply(params, model_state, images(), train=False)
    assert list(features)[-1] == "pooled" and features["pooled"].ndim == 2
    assert torch.equal(logits, expected)
    assert in_parts.counts == in_whole.counts


def test_logits_are_the_head_applied_to_pooled(built: Built) -> None:
    check_head_of_pooled_is_apply(*built)


def test_logits_are_the_mlp_head_applied_to_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backbones.models.vgg.MLP_WIDTH", 16)  # for time
    model = MODELS["vgg11"]((3, 32, 32), 10, head="mlp")
    check_head_of_pooled_is_apply(model, *model.init(random.generator(0)))
