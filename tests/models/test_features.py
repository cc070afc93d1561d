"""The maps of a model, stage by stage."""

import copy
import weakref
from collections.abc import Iterator

import pytest
import torch
from helpers.runs import relative_error
from helpers.shallow import images, shallow
from torch import Tensor, nn
from torch.func import functional_call

import backbones.random as random
import backbones.tree as tree
from backbones.models import with_autocast
from backbones.models.base import Backbone

pytestmark = pytest.mark.slow

FOUR_STAGES = {"stem": "stem", **{f"stage{i}": f"stages.{i - 1}" for i in range(1, 5)}}
THREE_STAGES = {"stem": "stem", **{f"stage{i}": f"stages.{i - 1}" for i in range(1, 4)}}
MAPS = {
    "vgg11": {"stage1": "features.2", "stage2": "features.5", "stage3": "features.10"}
    | {"stage4": "features.13", "stage5": "features.16"},
    "resnet18": FOUR_STAGES,
    "preactresnet18": FOUR_STAGES,
    "wrn-16-8": THREE_STAGES,
    "se-resnet18": FOUR_STAGES,
    "cbam-resnet18": FOUR_STAGES,
    "resnext29-32x4d": THREE_STAGES,
    "mobilenet": {"stem": "stem", **{f"block{i}": f"blocks.{i - 1}" for i in range(1, 14)}},
    "mobilenet-v2": {"stem": "stem", "stage1": "blocks.0", "stage2": "blocks.2", "stage3": "blocks.5"}
    | {"stage4": "blocks.9", "stage5": "blocks.12", "stage6": "blocks.15", "stage7": "blocks.16"},
    "shufflenet-g8": THREE_STAGES,
    "airbench": {"stage1": "stages.0", "stage2": "stages.1", "stage3": "stages.2"},
    "convnext-atto": FOUR_STAGES,
    "vit-tiny": {"stem": "dropout", "block1": "blocks.0", "block2": "blocks.1"},
    "mixer-tiny": {"block1": "blocks.0", "block2": "blocks.1"},
}
"""Model -> map -> the submodule whose output it is; the stems of airbench and mixer end in a function."""


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_the_outputs_of_their_stages(name: str) -> None:
    model = shallow(name)((3, 32, 32), 10)
    params, model_state = model.init(random.generator(0))
    module = copy.deepcopy(model.skeleton).to_empty(device="cpu")
    module.load_state_dict(params | model_state)
    outputs = {}
    for feature, path in MAPS[name].items():
        module.get_submodule(path).register_forward_hook(
            lambda module, args, output, feature=feature: outputs.update({feature: output})
        )
    with torch.no_grad():
        module(images())
        features = model.features(params, model_state, images())
    assert features.keys() - outputs.keys() <= {"stem", "pooled"} and ("stem" in features) == (name != "vgg11")
    for feature, output in outputs.items():
        assert torch.equal(features[feature], output)


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "vit-tiny"])
@pytest.mark.filterwarnings("ignore:There is a performance drop.*scaled_dot_product:UserWarning")
def test_features_compile_and_vmap(name: str) -> None:
    model = shallow(name)((3, 32, 32), 10)
    trees = [model.init(random.generator(seed)) for seed in range(2)]
    stacked = tree.map(lambda *leaves: torch.stack(leaves), *trees)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model.features, fullgraph=True, backend="aot_eager")(*trees[1], images())
        together = torch.func.vmap(model.features, in_dims=(0, 0, None))(*stacked, images())
        expected = model.features(*trees[1], images())
    assert compiled.keys() == together.keys() == expected.keys()
    for feature, wanted in expected.items():
        assert relative_error(compiled[feature], wanted) < 1e-5
        assert relative_error(together[feature][1], wanted) < 1e-5


@pytest.mark.parametrize("name", ["resnet18", "vit-tiny"])
def test_with_autocast_is_autocast_around_every_function(name: str) -> None:
    model = shallow(name)((3, 32, 32), 10)
    trees = model.init(random.generator(0))
    rounded = with_autocast(model, torch.bfloat16)
    assert with_autocast(model, torch.float32) is model
    with torch.no_grad():
        logits, _ = rounded.apply(*trees, images(), train=False)
        features = rounded.features(*trees, images())
        with torch.autocast("cpu", torch.bfloat16):
            expected = model.features(*trees, images())
            head = {name: trees[0][f"head.{name}"] for name in ("weight", "bias")}
            head_of_pooled = functional_call(model.skeleton.get_submodule("head"), head, features["pooled"])
    assert tree.sha256(features) == tree.sha256(expected)
    assert logits.dtype == torch.bfloat16 and torch.equal(logits, head_of_pooled)
    assert rounded.roles is model.roles


def test_the_pass_to_the_logits_holds_no_map_longer_than_the_next_layer() -> None:
    alive = []

    class Chain(Backbone):
        def forward_features(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
            x, maps = images, []
            for i in range(5):
                x = x + 1
                maps.append(weakref.ref(x))
                alive.append(sum(map() is not None for map in maps))
                yield f"block{i}", x

        head = nn.Identity()

    module = Chain()
    assert torch.equal(module(torch.zeros(3)), torch.full((3,), 5.0))
    assert alive == [1, 2, 2, 2, 2]
    alive.clear()
    assert list(module(torch.zeros(3), features=True)) == [f"block{i}" for i in range(5)]
    assert alive == [1, 2, 3, 4, 5]
