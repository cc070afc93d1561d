"""Weights from elsewhere start our models: timm's and torchvision's own code is the oracle."""

import re
from collections import OrderedDict

import pytest
import timm
import torch
import torchvision.models
from helpers.runs import relative_error
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import backbones.random as random
from backbones.errors import InputError
from backbones.models import LIBRARIES as MODELS_OF, MODELS, Model, from_module, with_pretrained
from backbones.models.pretrained import fit_channels, fit_positions

SHAPE = (3, 32, 32)


def logits(model: Model, images: Tensor) -> Tensor:
    params, model_state = model.init(random.generator(9))
    return model.apply(params, model_state, images, train=False)[0]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, *SHAPE, generator=random.generator(1))


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_kernels_for_other_channels_are_those_of_timm(channels: int) -> None:
    kernels = torch.randn(5, 3, 2, 2)
    torch.testing.assert_close(fit_channels(kernels, channels), adapt_input_conv(channels, kernels.clone()))


@pytest.mark.parametrize("before", [0, 1, 2, 5])
@pytest.mark.parametrize(("old", "grid", "shape"), [(14, (8, 8), (3, 32, 32)), (4, (7, 14), (1, 112, 224))])
def test_positions_on_another_grid_are_those_of_timm(
    before: int, old: int, grid: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    embeddings = torch.randn(1, before + old**2, 16)
    expected = resample_abs_pos_embed(embeddings, list(grid), num_prefix_tokens=before)
    fitted = fit_positions(embeddings, before + grid[0] * grid[1], shape)
    torch.testing.assert_close(fitted, expected)


def test_positions_of_no_grid() -> None:
    embeddings = torch.zeros(1, 40, 16)
    assert fit_positions(embeddings, 65, SHAPE) is embeddings


def test_only_positions_are_resampled() -> None:
    one, four = (MODELS["vit-tiny"](SHAPE, 10, patch_size=8, depth=1, registers=registers) for registers in (1, 4))
    with pytest.raises(InputError, match=r"register_tokens is \(1, 1, 192\), expected \(1, 4, 192\)"):
        with_pretrained(four, one.init(random.generator(0))[0], SHAPE)


def test_a_grid_that_only_looks_the_same_is_told() -> None:
    model = MODELS["vit-tiny"]((3, 16, 64), 10, patch_size=8, depth=1)  # 2x8 patches, as many as 4x4
    _, notes = with_pretrained(model, model.init(random.generator(0))[0], (3, 16, 64))
    assert notes == ["pos_embed is taken to be of the same grid of patches, though a square one has as many"]


def test_kernels_whose_inputs_are_not_the_channels_of_the_image_are_refused() -> None:
    """After space-to-depth, as in timm's TResNet, each channel is several inputs."""

    def make(channels: int) -> nn.Module:
        stem = nn.PixelUnshuffle(4), nn.Conv2d(16 * channels, 4, 3)
        return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

    params, _ = from_module(lambda: make(3)).init(random.generator(0))
    with pytest.raises(InputError, match=r"1\.weight is \(4, 48, 3, 3\), expected \(4, 16, 3, 3\)"):
        with_pretrained(from_module(lambda: make(1)), params, (1, 32, 32))


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_around_the_names(wrapper: str, images: Tensor) -> None:
    model = MODELS["mobilenet"](SHAPE, 10)
    params, model_state = model.init(random.generator(0))
    weights = {f"{wrapper}{name}": leaf for name, leaf in {**params, **model_state}.items()}
    started, notes = with_pretrained(model, weights, SHAPE)
    assert notes == [f"{part}. before each name is dropped" for part in wrapper.split(".")[:-1]]
    assert torch.equal(logits(started, images), model.apply(params, model_state, images, train=False)[0])


THEIRS = [
    ("resnet18", {"stem": "imagenet"}, torchvision.models.resnet18, {}),
    ("mobilenet-v2", {"stem": "imagenet"}, torchvision.models.mobilenet_v2, {}),
    ("mobilenet-v2", {"stem": "imagenet"}, timm.create_model, {"model_name": "mobilenetv2_100"}),
    ("convnext-tiny", {"stem": "imagenet"}, torchvision.models.convnext_tiny, {}),
    ("convnext-atto", {"stem": "imagenet"}, timm.create_model, {"model_name": "convnext_atto"}),
    (
        "vit-tiny",
        {"patch_size": 8, "depth": 2},
        VisionTransformer,
        {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 768},
    ),
    (
        "vit-tiny",
        {"patch_size": 8},
        timm.create_model,
        {"model_name": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8},
    ),
]
"""Our model and its options; theirs."""


@pytest.mark.parametrize(("name", "options", "make", "arguments"), THEIRS)
def test_files_of_torchvision_and_timm_by_their_own_names(name: str, options, make, arguments, images: Tensor) -> None:
    module = make(num_classes=10, **arguments).eval()
    with torch.no_grad():
        for leaf in module.parameters():
            leaf.add_(0.02 * torch.randn(leaf.shape, generator=random.generator(2)))
    weights = {key: leaf for key, leaf in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    model, notes = with_pretrained(MODELS[name](SHAPE, 10, **options), weights, SHAPE)
    assert notes == ["the names are those of torchvision or timm"]
    assert relative_error(logits(model, images), module(images)) < 1e-5


def test_biases_before_a_norm_as_torchvisions_vgg_has_them(images: Tensor) -> None:
    with torch.device("meta"):  # for time: its classifier is left out
        module = torchvision.models.vgg11_bn()
    module.features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"], batch_norm=True)
    module.avgpool, module.classifier = nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Linear(512, 10))
    module(images)  # running statistics of its own
    model, _ = with_pretrained(MODELS["vgg11-bn"](SHAPE, 10), module.state_dict(), SHAPE)
    assert relative_error(logits(model, images), module.eval()(images)) < 1e-5


def test_biases_before_a_norm_stay_where_the_model_has_them(images: Tensor) -> None:
    def make() -> nn.Module:
        features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(OrderedDict(features=features, head=nn.Linear(4, 10)))

    module = make()
    module(images)
    model, notes = with_pretrained(from_module(make), module.state_dict(), SHAPE)
    assert notes == [] and relative_error(logits(model, images), module.eval()(images)) < 1e-5


def test_other_images_and_other_classes_at_once() -> None:
    shape, images = (1, 48, 48), torch.randn(2, 1, 48, 48)
    source = timm.create_model("vit_tiny_patch16_224", img_size=224)
    weights = {f"module.{name}": leaf for name, leaf in source.state_dict().items()}
    model, notes = with_pretrained(MODELS["vit-tiny"](shape, 7, patch_size=16), weights, shape)
    assert notes == [
        "module. before each name is dropped",
        "the names are those of torchvision or timm",
        "pos_embed of (1, 197, 192) became (1, 10, 192)",
        "patch_embed.weight of (192, 3, 16, 16) became (192, 1, 16, 16)",
        "missing or of another size, and initialised: head.weight, head.bias",
    ]
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, in_chans=1, img_size=48).eval()
    fitted = source.state_dict()
    fitted = {name: leaf for name, leaf in fitted.items() if not name.startswith("head")}
    fitted["patch_embed.proj.weight"] = adapt_input_conv(1, fitted["patch_embed.proj.weight"])
    fitted["pos_embed"] = resample_abs_pos_embed(fitted["pos_embed"], [3, 3])
    theirs.load_state_dict(fitted)
    params, model_state = model.init(random.generator(0))
    pooled = model.features(params, model_state, images)["pooled"]
    assert relative_error(pooled, theirs(images)) < 1e-5
    assert params["head.weight"].shape == (7, 192)


def test_a_file_without_a_head_and_one_with_a_head_of_another_kind(images: Tensor) -> None:
    model = MODELS["vgg11"](SHAPE, 10)
    params, _ = model.init(random.generator(0))
    headless = {name: leaf for name, leaf in params.items() if not name.startswith("head.")}
    started, notes = with_pretrained(model, headless, SHAPE)
    assert notes == ["missing or of another size, and initialised: head.2.weight, head.2.bias"]
    assert torch.equal(started.init(random.generator(1))[0]["features.0.weight"], params["features.0.weight"])
    theirs = torchvision.models.mobilenet_v2().state_dict()
    theirs = {key: leaf for key, leaf in theirs.items() if not key.startswith("classifier")}
    mobilenet = MODELS["mobilenet-v2"](SHAPE, 10, stem="imagenet")
    assert "missing or of another size" in with_pretrained(mobilenet, theirs, SHAPE)[1][-1]
    with torch.device("meta"):
        mlp = torchvision.models.vgg11().state_dict()  # three linear layers
    _, notes = with_pretrained(model, mlp, SHAPE)
    assert notes[-1] == "missing or of another size, and initialised: head.2.weight, head.2.bias"


def test_weights_of_another_model_are_refused() -> None:
    weights = torchvision.models.resnet18().state_dict()
    with pytest.raises(
        InputError, match=r"not weights of this model:\n  stem\.0\.weight is \(64, 3, 7, 7\), expected \(64, 3, 3"
    ):
        with_pretrained(MODELS["resnet18"](SHAPE, 10), weights, SHAPE)
    with pytest.raises(InputError, match=r"\n  blocks\.0\.depthwise\.weight is missing, expected"):
        with_pretrained(MODELS["mobilenet"](SHAPE, 10), weights, SHAPE)
    params, model_state = MODELS["airbench"](SHAPE, 10).init(random.generator(0))
    with pytest.raises(InputError, match=r"extra\.weight is \(1,\), expected none"):
        with_pretrained(MODELS["airbench"](SHAPE, 10), {**params, **model_state, "extra.weight": torch.ones(1)}, SHAPE)


def test_weights_of_an_averaged_model_and_with_a_gradient(images: Tensor) -> None:
    module = torchvision.models.resnet18(num_classes=10)
    model = from_module(lambda: torchvision.models.resnet18(num_classes=10))
    averaged = torch.optim.swa_utils.AveragedModel(module).state_dict(keep_vars=True)
    started, notes = with_pretrained(model, averaged, SHAPE)
    assert notes == ["module. before each name is dropped"]
    params, model_state = started.init(random.generator(0))
    assert not any(leaf.requires_grad for leaf in params.values())
    expected = module.eval()(images)
    torch.testing.assert_close(started.apply(params, model_state, images, train=False)[0], expected)


def test_what_is_left_over_of_a_deeper_network_is_refused() -> None:
    """Though the head is fresh, and all leaves are of one attribute."""

    def net(depth: int) -> Model:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                layers = [nn.Conv2d(3 if i == 0 else 4, 4, 3) for i in range(depth)]
                self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

            def forward(self, images: Tensor) -> Tensor:
                return self.net(images)

        return from_module(Net)

    params, _ = net(4).init(random.generator(0))
    with pytest.raises(InputError, match=r"net\.2\.weight is .*, expected none"):
        with_pretrained(net(2), params, SHAPE)


@pytest.mark.parametrize("architecture", ["googlenet", "inception_v3", "densenet121"])
def test_the_files_of_torchvision(architecture: str) -> None:
    """Those of Inception have classifiers for its training, those of DenseNets other names."""
    options = {"init_weights": False} if architecture in ("googlenet", "inception_v3") else {}
    file = torchvision.models.get_model(architecture, weights=None, **options).state_dict()
    file = {re.sub(r"(denselayer\d+\.(norm|relu|conv))([12])\.", r"\1.\3.", name): leaf for name, leaf in file.items()}
    shape = (3, 75, 75)
    started, notes = with_pretrained(MODELS_OF["torchvision"](shape, 10, architecture=architecture), file, shape)
    params, _ = started.init(random.generator(0))
    first = next(name for name in params if name in file)
    assert torch.equal(params[first], file[first]) and any("initialised: " in note for note in notes)
    assert any(note.startswith("not used: ") for note in notes) == (architecture != "densenet121")


@pytest.mark.parametrize("architecture", ["googlenet", "inception_v3"])
def test_inception_networks_transform_images_as_those_with_published_weights(architecture: str) -> None:
    theirs = torchvision.models.get_model(architecture, weights=None, init_weights=False, transform_input=True).eval()
    shape, photos = (3, 75, 75), torch.randn(2, 3, 75, 75, generator=random.generator(1))
    ours, _ = with_pretrained(
        MODELS_OF["torchvision"](shape, 1000, architecture=architecture), theirs.state_dict(), shape
    )
    assert relative_error(logits(ours, photos), theirs(photos)) < 1e-5
    assert MODELS_OF["torchvision"]((1, 75, 75), 10, architecture=architecture).skeleton.transform_input is False


def test_older_names_in_torchvisions_files_of_vits(images: Tensor) -> None:
    name, options, make, arguments = THEIRS[-2]
    theirs = make(num_classes=10, **arguments).eval()
    with torch.no_grad():
        theirs.heads.head.weight.normal_(generator=random.generator(2))
    older = {
        key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): leaf
        for key, leaf in theirs.state_dict().items()
    }
    assert older.keys() != theirs.state_dict().keys()
    model, _ = with_pretrained(MODELS[name](SHAPE, 10, **options), older, SHAPE)
    assert relative_error(logits(model, images), theirs(images)) < 1e-5
