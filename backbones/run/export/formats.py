"""The formats that weights are exported in: how each is written, and the lines of Python that read it without our code.

N images, C channels, H and W height and width.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from backbones.component import Use
from backbones.data import DataInfo
from backbones.errors import InputError
from backbones.models import LIBRARIES, MODELS
from backbones.models.convert import export_weights
from backbones.models.counterpart import Library, arguments_of_theirs, find_counterpart
from backbones.models.exported import make_module, make_program
from backbones.models.state_dict import write_state_dict
from backbones.run.analysis.trained_model import TrainedModel


class Content(NamedTuple):
    """What is exported."""

    component: Use
    """How the experiment makes the model."""
    trained: TrainedModel
    """In float32 on the CPU."""
    metadata: dict[str, Any]
    """Plain data, written into the file."""
    fold: bool = False
    """Whether BatchNorm is folded into the convolution before it."""


class Lines(NamedTuple):
    """How a file is read in Python."""

    imports: str
    load: str
    """Statements; `path` is the file."""
    result: str
    """An expression: the weights by name, or the logits of `images`, a numpy array [N, C, H, W] of uint8."""


class Format(NamedTuple):
    """A format of files."""

    kind: Literal["weights", "module", "program"]
    """Our weights; weights for a module of another library; or all of the computation, with normalization."""
    file_name: str
    """In the folder of the run, if no other one is given."""
    write: Callable[[Path, Content], Lines]
    packages: tuple[str, ...] = ()
    """What must be installed beside torch."""


def write_safetensors(path: Path, content: Content) -> Lines:
    """Parameters and model state under our names."""
    write_state_dict(path, content.trained.leaves, content.metadata)
    return Lines("from safetensors.torch import load_file", "weights = load_file(path)", "weights")


def write_torch(path: Path, content: Content) -> Lines:
    """The same by torch.save."""
    write_state_dict(path, content.trained.leaves, content.metadata)
    return Lines("import torch", 'weights = torch.load(path, weights_only=True)["state_dict"]', "weights")


def _make_program(content: Content) -> torch.export.ExportedProgram:
    trained, info = content.trained, content.trained.info
    weights, shape = (trained.params, trained.model_state), info.image_shape
    return make_program(trained.model, weights, image_shape=shape, mean=info.mean, std=info.std, fold=content.fold)


def _to_text(metadata: dict[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value) for name, value in metadata.items()}


def write_pt2(path: Path, content: Content) -> Lines:
    """A graph of torch.export."""
    files = {"metadata.json": json.dumps(content.metadata)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found")  # said of kernels in channels_last memory
        torch.export.save(_make_program(content), path, extra_files=files)
    return Lines("import torch", "model = torch.export.load(path).module()", "model(torch.from_numpy(images))")


def write_onnx(path: Path, content: Content) -> Lines:
    """A graph of ONNX."""
    exported = torch.onnx.export(
        _make_program(content),
        (),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: "batch"}},
        dynamo=True,
        verbose=False,
    )
    assert exported is not None
    exported.model.metadata_props.update(_to_text(content.metadata))
    exported.save(path, external_data=False)
    return Lines(
        "import onnxruntime", "session = onnxruntime.InferenceSession(path)", 'session.run(None, {"images": images})[0]'
    )


def write_aoti(path: Path, content: Content) -> Lines:
    """Compiled code for the processor of this machine."""
    configs = {"aot_inductor.metadata": _to_text(content.metadata)}
    torch._inductor.aoti_compile_and_package(_make_program(content), package_path=str(path), inductor_configs=configs)
    return Lines("import torch", "model = torch._inductor.aoti_load_package(path)", "model(torch.from_numpy(images))")


def write_timm(path: Path, content: Content) -> Lines:
    """Weights under timm's names."""
    arguments = _write_named("timm", path, content)
    load = f"model = timm.create_model({arguments}, checkpoint_path=path).eval()"
    return Lines("import timm\nimport torch", f"{load}\n{_statistics(content.trained.info)}", NORMALISED)


def write_torchvision(path: Path, content: Content) -> Lines:
    """Weights under torchvision's names."""
    arguments = _write_named("torchvision", path, content)
    imports = "import torch\nfrom safetensors.torch import load_file\nfrom torchvision.models import get_model"
    load = f"model = get_model({arguments}).eval()\nmodel.load_state_dict(load_file(path))"
    return Lines(imports, f"{load}\n{_statistics(content.trained.info)}", NORMALISED)


NORMALISED = "model((torch.from_numpy(images) - mean) / std).detach()"


def _statistics(info: DataInfo) -> str:
    return f"mean, std = torch.tensor([{list(info.mean)}, {list(info.std)}])[:, :, None, None]"


def _write_named(library: Library, path: Path, content: Content) -> str:
    """Write the weights under the names of a library, and return the arguments that its module is made with."""
    component, trained = content.component, content.trained
    about = trained.info.image_shape, trained.info.num_classes
    if component.function is LIBRARIES[library]:
        architecture = component.values["architecture"]
        arguments = arguments_of_theirs(library, architecture, *about)
        leaves = make_module(trained.model, (trained.params, trained.model_state)).state_dict().items()
        # copies, since safetensors refuses tied ones
        state_dict = {name: leaf.clone(memory_format=torch.contiguous_format) for name, leaf in leaves}
    elif MODELS.get(component.name) is component.function:
        architecture, arguments = find_counterpart(library, component.name, component.values, *about)
        state_dict = export_weights(component.name, trained.params, trained.model_state)
    else:
        raise InputError(f"{library} is not known to have {component.values.get('architecture', component.name)}")
    write_state_dict(path, state_dict, {"architecture": architecture, "arguments": arguments, **content.metadata})
    return ", ".join([repr(architecture), *(f"{name}={value!r}" for name, value in arguments.items())])


FORMATS = {
    "safetensors": Format("weights", "weights.safetensors", write_safetensors),
    "torch": Format("weights", "weights.pt", write_torch),
    "pt2": Format("program", "model.pt2", write_pt2),
    "onnx": Format("program", "model.onnx", write_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "aoti": Format("program", "model-aoti.pt2", write_aoti),
    "timm": Format("module", "timm.safetensors", write_timm, ("timm",)),
    "torchvision": Format("module", "torchvision.safetensors", write_torchvision),
}
"""Name -> format."""
