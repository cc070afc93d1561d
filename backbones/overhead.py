"""What a model costs: parameters, multiply-accumulates, activations and time.

`python -m backbones.overhead` prints a table of all models, or of those that are named.
"""

import copy
import inspect
import json as json_format
import math
import sys
import warnings
from typing import Any, Literal, NamedTuple

import torch
import tyro
from tqdm import tqdm

import backbones.distributed as distributed
import backbones.random as random
import backbones.tree as tree
from backbones.command_line import one_message
from backbones.errors import InputError, check_known
from backbones.models import MODELS, Model
from backbones.models.layers import check_sizes

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".*torch.jit.script. is deprecated")  # what importing fvcore calls
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis, flop_count_table


class Overhead(NamedTuple):
    """The price of one model."""

    num_params: int
    macs: int
    """Multiply-accumulates of one forward pass over one image; a norm counts two for each number."""
    activations: int
    """Numbers that convolutions and matrix products put out for one image (arXiv 2003.13678, section 2.2)."""


def measure_overhead(model: Model, image_shape: tuple[int, int, int]) -> Overhead:
    """Count parameters, and with fvcore multiply-accumulates and activations, for one image [C, H, W]."""
    macs, activations = _analyze(model, image_shape)
    num_params = sum(leaf.numel() for leaf in model.skeleton.parameters())
    return Overhead(num_params, int(macs.total()), int(activations.total()))


def layer_table(model: Model, image_shape: tuple[int, int, int], *, depth: int) -> str:
    """What each layer costs for one image [C, H, W], down to `depth` dots in its name, as a table to read."""
    macs, activations = _analyze(model, image_shape)
    return flop_count_table(macs, max_depth=depth, activations=activations, show_param_shapes=False).replace(
        "#flops", "#MACs "
    )


def measure_latency(
    model: Model, image_shape: tuple[int, int, int], *, batch_size: int, device: torch.device, seconds: float = 1.0
) -> float:
    """Median seconds of an eager float32 forward pass over a batch, in evaluation mode.

    Args:
        model: the backbone.
        image_shape: channels, height and width of an image.
        batch_size: images a pass.
        device: where to compute.
        seconds: how long to repeat it.
    """
    from torch.utils.benchmark import Timer  # late: it looks for a C++ tool chain, which training does not need

    params, model_state = tree.map(lambda leaf: leaf.to(device), model.init(random.generator(0)))
    images = torch.zeros(batch_size, *image_shape, device=device).contiguous(memory_format=torch.channels_last)
    timer = Timer(
        "apply(params, model_state, images, train=False)",
        globals={"apply": model.apply, "params": params, "model_state": model_state, "images": images},
        num_threads=torch.get_num_threads(),
    )
    with torch.no_grad():
        return timer.blocked_autorange(min_run_time=seconds).median


def _analyze(model: Model, image_shape: tuple[int, int, int]) -> tuple[FlopCountAnalysis, ActivationCountAnalysis]:
    # fvcore looks into a module, and traces it; the counts are the same with any weights.
    module = copy.deepcopy(model.skeleton).to_empty(device="cpu")
    for leaf in module.state_dict().values():
        leaf.zero_()
    images = torch.zeros(1, *image_shape)
    macs, activations = FlopCountAnalysis(module, images), ActivationCountAnalysis(module, images)
    macs.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
    for analysis in (macs, activations):
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return macs, activations


def _attention_macs(inputs: list, outputs: list) -> int:
    """Queries times keys and weights times values: twice B heads N^2 D/heads."""
    del outputs
    *batch_and_heads, tokens, width = inputs[0].type().sizes()
    return 2 * math.prod(batch_and_heads) * tokens**2 * width


def main(
    models: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    image_size: int = 32,
    channels: int = 3,
    num_classes: int = 10,
    stem: Literal["cifar", "imagenet"] | None = None,
    patch_size: int | None = None,
    batch_size: int = 32,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    depth: int | None = None,
    json: bool = False,
) -> None:
    """Parameters, multiply-accumulates (MACs) and activations per image, and the time of a forward pass.

    Args:
        models: names of models; none for all.
        image_size: height and width of an image, pixels.
        channels: channels of an image.
        num_classes: number of classes.
        stem: first layers of ConvNets; None for each model's own.
        patch_size: side of a patch of models that have patches, pixels; None for each model's own.
        batch_size: images a pass, for the time.
        device: where to time it; auto is the GPU where there is one.
        depth: instead of the table, show the layers of one model, this deep.
        json: print a list of objects instead of a table.

    Raises:
        InputError: a name is unknown, or a model cannot be made like this.
    """
    names = [check_known("model", name, MODELS) for name in models] or list(MODELS)
    check_sizes(image_size=image_size, channels=channels, num_classes=num_classes, batch_size=batch_size)
    options = {name: value for name, value in (("stem", stem), ("patch_size", patch_size)) if value is not None}
    for option in options:
        if not any(option in inspect.signature(MODELS[name]).parameters for name in names):
            raise InputError(f"--{option.replace('_', '-')} is not for {' or '.join(names)}, which has no such field")
    image_shape = (channels, image_size, image_size)
    if depth is not None:
        check_sizes(depth=depth)
        if len(names) != 1 or json:
            raise InputError("--depth shows the layers of one model, for reading: name one, and leave out --json")
        print(layer_table(_make(names[0], image_shape, num_classes, options), image_shape, depth=depth))
        return
    torch_device = distributed.init(device)
    rows = []
    for name in tqdm(names, unit="model", disable=not sys.stderr.isatty()):
        model = _make(name, image_shape, num_classes, options)
        row = {"model": name, **measure_overhead(model, image_shape)._asdict()}
        row["milliseconds"] = 1e3 * measure_latency(model, image_shape, batch_size=batch_size, device=torch_device)
        rows.append({**row, "batch_size": batch_size, "device": torch_device.type})
    if json:
        print(json_format.dumps(rows, indent=2))
        return
    print(f"| model | parameters | MACs (M) | activations (M) | ms for {batch_size} images ({torch_device.type}) |")
    print("|---|--:|--:|--:|--:|")
    for row in rows:
        name, num_params, macs, activations, milliseconds, *_ = row.values()
        print(f"| {name} | {num_params:,} | {macs / 1e6:,.1f} | {activations / 1e6:,.2f} | {milliseconds:,.1f} |")


def _make(name: str, image_shape: tuple[int, int, int], num_classes: int, options: dict[str, Any]) -> Model:
    known = inspect.signature(MODELS[name]).parameters
    return MODELS[name](image_shape, num_classes, **{key: value for key, value in options.items() if key in known})


if __name__ == "__main__":
    with one_message():
        tyro.cli(main, prog="python -m backbones.overhead")
