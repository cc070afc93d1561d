"""Exported files compute what the checkpoint does, in their own runtimes."""

import ast
import dataclasses
import importlib.util
import json
import re
from collections import Counter
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import onnxruntime
import pytest
import timm
import torch
import torchvision
from helpers.runs import ROOT, relative_error
from torch import Tensor, nn

import backbones.random as random
from backbones.augment import make_normalize
from backbones.component import Use, use
from backbones.data import Dataset, digits
from backbones.errors import InputError
from backbones.experiment import VERSION, Experiment
from backbones.models import LIBRARIES, MODELS, convert
from backbones.models.counterpart import COUNTERPARTS, find_counterpart
from backbones.models.exported import make_module, make_program
from backbones.models.layers import conv3x3
from backbones.run.analysis.trained_model import TrainedModel, load_model
from backbones.run.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from backbones.run.export.export import Exported, _version, _write, export, read_test_images
from backbones.run.export.formats import FORMATS, Content, Lines
from backbones.run.run import run
from backbones.types import CPU
from experiments.digits import digits_vit_tiny

DOCS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), flags=re.DOTALL)
IMAGES = digits().test.read(torch.arange(20), torch.arange(20))
INFO = digits().info
ABOUT = {"image_shape": (3, 16, 16), "mean": INFO.mean, "std": INFO.std}


class Net(nn.Module):
    """Convolutions with and without BatchNorm after them; the last ones are products of matrices in training."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv3x3(3, 8, stride=2), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, stride=4, padding=1, groups=2), nn.BatchNorm2d(8, affine=False)
        self.conv3, self.norm3 = conv3x3(8, 16), nn.BatchNorm2d(16)
        self.norm4 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        x = self.conv3(x)
        x = torch.relu(self.norm3(x)) + self.norm4(torch.relu(x))  # neither can be folded
        return self.head(x.mean((2, 3)))


class Tied(nn.Module):
    """Two layers with one matrix, and a parameter that is repeated `len(x)` times."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.token = nn.Parameter(torch.randn(1, 3))
        self.head = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.tanh(self.first(x.mean((2, 3)))))
        return self.head(x + self.token.expand(len(x), -1))


class Branching(nn.Module):
    """Its computation depends on its input."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        return self.head(x if x.sum().item() > 0 else -x)


class Trainee(NamedTuple):
    experiment: Experiment
    checkpoint: Checkpoint

    def export(self, out: Path, format: str, **options: object) -> Exported:
        return export(self.checkpoint, self.experiment, lambda: IMAGES, out, format=format, **options)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Trainee:
    """Trained for three steps: statistics, average and parameters differ."""
    folder = tmp_path_factory.mktemp("net") / "run"
    options = {"steps": 3, "batch_size": 32, "eval_every": 3, "save_every": 3, "ema": 0.5}
    experiment = dataclasses.replace(digits_vit_tiny, name="tiny", model=use(Net), **options)
    run(experiment, run_dir=folder)
    return Trainee(experiment, read_checkpoint(find_checkpoint(folder)))


def new(component: Use) -> Content:
    """A model as it is initialised."""
    model = dataclasses.replace(digits_vit_tiny, model=component).make_model(INFO)
    normalize = make_normalize(INFO.mean, INFO.std, CPU)
    return Content(component, TrainedModel(model, *model.init(random.generator(0)), normalize, INFO, CPU), {})


def read_here(path: Path, lines: Lines) -> dict:
    """The variables after running the lines, in this process."""
    names = {"path": path, "images": IMAGES.numpy()}
    exec(f"{lines.imports}\n{lines.load}\nlogits = {lines.result}", names)
    return names


def is_documented(format: str, lines: Lines) -> bool:
    """Whether the lines stand in the documentation, whatever their layout is, up to how a processor rounds numbers."""
    path = f"path = 'runs/digits-vit-tiny/{FORMATS[format].file_name}'"
    code = f"{lines.imports}\n{path}\n{lines.load}\nlogits = {lines.result}"

    def plain(text: str) -> str:
        return re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.9g}", ast.unparse(ast.parse(text)))

    return plain(code) in map(plain, DOCS)


def test_a_graph_of_plain_convolutions_folded_where_norms_follow_them(net: Trainee) -> None:
    trained = load_model(net.checkpoint, net.experiment, CPU)
    weights, wanted = (trained.params, trained.model_state), trained.logits(IMAGES)
    for fold, norms in ((False, 4), (True, 2)):
        program = make_program(trained.model, weights, fold=fold, **ABOUT)
        calls = Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
        assert (calls["aten.conv2d.default"], calls["aten.batch_norm.default"]) == (3, norms)
        assert not {"aten.pad.default", "aten.cat.default"} & calls.keys()
        for images in (IMAGES, IMAGES[:1]):
            assert relative_error(program.module()(images), wanted[: len(images)]) < 1e-5
    assert weights[1]["norm2.running_mean"].abs().max() > 0.01  # else there would be nothing to fold
    assert "network.norm2.running_mean" not in program.state_dict and "network.norm3.weight" in program.state_dict


def test_norms_without_a_scale_are_folded_too() -> None:
    trained = new(use(MODELS["airbench"])).trained
    program = make_program(trained.model, (trained.params, trained.model_state), fold=True, **ABOUT)
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("aten.batch_norm.default") == 3  # behind a pool
    assert relative_error(program.module()(IMAGES), trained.logits(IMAGES)) < 1e-4


class Computed(nn.Sequential):
    """A norm behind a convolution whose weight is computed, and one behind a convolution that pads in words."""

    def __init__(self) -> None:
        conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        same = nn.Conv2d(4, 4, 3, padding="same"), nn.BatchNorm2d(4)
        super().__init__(conv, nn.BatchNorm2d(4), *same, nn.Flatten(), nn.Linear(4 * 14 * 14, 10))


def test_a_norm_is_folded_only_into_a_weight_that_is_not_computed() -> None:
    trained = new(use(Computed)).trained
    program = make_program(trained.model, (trained.params, trained.model_state), fold=True, **ABOUT)
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("aten.batch_norm.default") == 1
    assert relative_error(program.module()(IMAGES), trained.logits(IMAGES)) < 1e-4


def test_tied_parameters_stay_tied_and_the_length_of_a_batch_may_be_asked_for() -> None:
    tied = new(use(Tied)).trained
    weights = tied.params, tied.model_state
    module = make_module(tied.model, weights)
    assert module.first.weight is module.second.weight and not module.training
    program = make_program(tied.model, weights, **ABOUT).module()
    for images in (IMAGES, IMAGES[:1]):
        assert relative_error(program(images), tied.logits(images)) < 1e-5


@pytest.mark.slow
def test_onnx(net: Trainee, tmp_path: Path) -> None:
    out = tmp_path / "a.onnx"
    done = net.export(out, "onnx", fold=True, license="MIT")
    assert done.num_images == done.num_equal == len(IMAGES) and done.difference < 1e-5
    assert is_documented("onnx", done.lines)
    assert [*tmp_path.iterdir()] == [out]
    session = onnxruntime.InferenceSession(out)
    inputs, outputs = (
        [(x.name, x.shape, x.type) for x in each] for each in (session.get_inputs(), session.get_outputs())
    )
    assert inputs == [("images", ["batch", 3, 16, 16], "tensor(uint8)")]
    assert outputs == [("logits", ["batch", 10], "tensor(float)")]
    found = session.get_modelmeta().custom_metadata_map
    metadata = {name: json.loads(value) for name, value in found.items()}
    assert metadata["class_names"] == list("0123456789") and metadata["mean"] == list(INFO.mean)
    assert (metadata["experiment"], metadata["step"], metadata["license"]) == ("tiny", 3, "MIT")


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    tied = new(use(Tied))._replace(metadata={"class_names": INFO.class_names})
    path = tmp_path / "a.pt2"
    faster = {"aot_inductor.compile_wrapper_opt_level": "O0", "aot_inductor.precompile_headers": False}
    with torch._inductor.config.patch(faster):
        lines = FORMATS["aoti"].write(path, tied)
    assert is_documented("aoti", lines)
    names = read_here(path, lines)
    assert relative_error(names["logits"], tied.trained.logits(IMAGES)) < 1e-5
    assert json.loads(names["model"].get_metadata()["class_names"]) == list(INFO.class_names)


VIT = {"patch_size": 4, "width": 32, "depth": 1, "heads": 2, "mlp_width": 48}
NAMED = [
    ("timm", use(MODELS["vit-tiny"], **VIT)),
    ("timm", use(MODELS["vit-tiny"], pool="mean", positions="sincos", **VIT)),
    ("timm", use(LIBRARIES["timm"], architecture="test_vit")),
    ("torchvision", use(MODELS["mobilenet-v2"], stem="imagenet")),
    ("torchvision", use(LIBRARIES["torchvision"], architecture="shufflenet_v2_x0_5")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("library", "component"), NAMED, ids=str)
def test_under_the_names_of_a_library(library: str, component: Use, tmp_path: Path) -> None:
    content = new(component)
    path = tmp_path / "a.safetensors"
    lines = FORMATS[library].write(path, content)
    assert relative_error(read_here(path, lines)["logits"], content.trained.logits(IMAGES)) < 1e-5
    other = "timm" if library == "torchvision" else "torchvision"
    with pytest.raises(
        InputError, match=f"{other} is not known to have {component.values.get('architecture', component.name)}"
    ):
        FORMATS[other].write(path, content)


SMALLEST = {"resnet18", "resnext50-32x4d", "se-resnet50", "convnext-atto", "vit-tiny", "mixer-small", "vgg11-bn",
            "mobilenet-v2"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("library", COUNTERPARTS)
def test_counterparts_are_of_our_size(library: str) -> None:
    """On the meta device; `test_convert.py` compares what they compute."""
    make = {"timm": timm.create_model, "torchvision": torchvision.models.get_model}[library]
    known = timm.is_model if library == "timm" else torchvision.models.list_models().__contains__
    assert all(known(each.architecture) for each in COUNTERPARTS[library].values())
    for name in SMALLEST & COUNTERPARTS[library].keys():
        component = use(MODELS[name], **COUNTERPARTS[library][name].wanted)
        architecture, arguments = find_counterpart(library, name, component.values, (3, 224, 224), 7)
        with torch.device("meta"):
            theirs = make(architecture, **arguments).state_dict().values()
        ours = component.make(image_shape=(3, 224, 224), num_classes=7).skeleton.state_dict().values()
        biases = sum(len(leaf) for leaf in theirs if leaf.ndim == 4) if convert.FORMATS[name].bias_before_norm else 0
        assert sum(leaf.numel() for leaf in theirs) - biases == sum(leaf.numel() for leaf in ours), name


def test_the_lines_that_the_documentation_shows(tmp_path: Path) -> None:
    assert is_documented("timm", FORMATS["timm"].write(tmp_path / "a.safetensors", new(digits_vit_tiny.model)))


def test_what_is_no_counterpart_is_one_line(net: Trainee, tmp_path: Path) -> None:
    cifar = use(MODELS["resnet18"]).values
    with pytest.raises(InputError, match=r"timm's resnet18 is our resnet18 with stem='imagenet'; this .* stem='cifar'"):
        find_counterpart("timm", "resnet18", cifar, (3, 32, 32), 10)
    for name, option in (("resnext50-32x4d", {"downsample": "1x1"}), ("se-resnet50", {"reduction": 8})):
        options = {**use(MODELS[name], stem="imagenet").values, **option}
        with pytest.raises(InputError, match=f"this model has {next(iter(option))}={next(iter(option.values()))!r}"):
            find_counterpart("timm", name, options, (3, 32, 32), 10)
    with pytest.raises(InputError, match="vgg11 pool images of 100x96 in different ways"):
        find_counterpart("torchvision", "vgg11", use(MODELS["vgg11"], head="mlp").values, (3, 100, 96), 10)
    wide = use(MODELS["vit-tiny"], width=196, mlp_width=1024).values
    _, arguments = find_counterpart("timm", "vit-tiny", wide, (3, 32, 32), 10)
    assert int(196 * arguments["mlp_ratio"]) == 1024
    with pytest.raises(InputError, match="torchvision's resnet18 takes images of 3 channels, and these have 1"):
        find_counterpart("torchvision", "resnet18", {"stem": "imagenet"}, (1, 32, 32), 10)
    with pytest.raises(InputError, match="torchvision is not known to have vit-tiny; of our models it has resnet18, "):
        find_counterpart("torchvision", "vit-tiny", {}, (3, 32, 32), 10)
    with pytest.raises(InputError, match="timm is not known to have Net"):
        net.export(tmp_path / "a.safetensors", "timm")


def test_what_does_not_compute_the_same_is_deleted(
    net: Trainee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, content: Content) -> Lines:
        del content
        path.touch()
        return Lines("", "numpy.load(path)", "numpy.zeros([len(images), 10])")

    monkeypatch.setitem(FORMATS, "pt2", FORMATS["pt2"]._replace(write=write))
    with pytest.raises(InputError, match="the exported file could not be read again: EOFError: No data left in file"):
        net.export(tmp_path / "a.pt2", "pt2")
    wanted = load_model(net.checkpoint, net.experiment, CPU).logits(IMAGES)
    for slip, message in ((2e-4, "logits of 20 images differ by 0.0002, "), (float("nan"), "by nan, "), (9e-5, None)):
        monkeypatch.setattr("backbones.run.export.export.compute_logits", lambda *args, slip=slip: wanted + slip)
        with pytest.raises(InputError, match=message) if message else nullcontext():
            net.export(tmp_path / "a.pt2", "pt2")
        assert bool([*tmp_path.iterdir()]) == (message is None)
    monkeypatch.setattr("backbones.run.export.export.read_tensors", lambda *args: {})
    with pytest.raises(InputError, match="are not the weights of the checkpoint"):
        net.export(tmp_path / "new" / "a.pt", "torch")
    assert not [*(tmp_path / "new").iterdir()]


def test_what_cannot_be_exported_is_one_line(net: Trainee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.pt2"
    with pytest.raises(InputError, match=r"--out .*a\.pt2 does not end in \.onnx, as a file of --format onnx does"):
        net.export(out, "onnx")
    with pytest.raises(InputError, match=r"--fold changes the layers, and .* weights alone; it is for pt2, onnx, aoti"):
        net.export(tmp_path / "a.pt", "torch", fold=True)
    with pytest.raises(InputError, match="unknown format 'onxx'; did you mean onnx"):
        net.export(out, "onxx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--format timm needs timm; install it by pip install -e '\.\[export\]'"):
        net.export(tmp_path / "a.safetensors", "timm")
    branching = new(use(Branching))
    with pytest.raises(InputError, match="Branching cannot be exported as pt2: ") as error:
        _write("pt2", out, branching)
    assert "\n" not in str(error.value) and not out.exists()
    out.write_text("precious")
    with pytest.raises(InputError, match="exists already; choose another --out"):
        net.export(out, "pt2")
    assert out.read_text() == "precious"


def gone(device: torch.device = CPU) -> Dataset:
    raise InputError("photos is not a folder")


def test_a_package_that_is_not_installed_has_the_version_of_its_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", mock.Mock(side_effect=PackageNotFoundError))
    assert _version() == VERSION


def test_random_pixels_are_compared_where_the_data_is_gone(net: Trainee, capsys: pytest.CaptureFixture[str]) -> None:
    experiment, info = dataclasses.replace(net.experiment, data=use(gone)), net.checkpoint.manifest.info
    images = read_test_images(experiment, info, 20)
    assert images.dtype == torch.uint8 and images.shape == (20, *info.image_shape) and len(images.unique()) > 200
    assert torch.equal(images, read_test_images(experiment, info, 20))
    assert "note: logits are compared on random pixels; photos is not a folder" in capsys.readouterr().out
