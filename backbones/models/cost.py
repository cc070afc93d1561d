"""What a model costs: parameters, multiply-accumulates, activations and time. The only importer of fvcore."""

import math
import warnings
from typing import NamedTuple

import torch

import backbones.random as random
import backbones.tree as tree
from backbones.models import Model
from backbones.models.base import ImageShape, with_memory

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".*torch.jit.script. is deprecated")  # what importing fvcore calls
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis, flop_count_table


class ModelCost(NamedTuple):
    """What one model costs."""

    num_params: int
    macs: int | None
    """Multiply-accumulates of one forward pass over one image; elements count two in BatchNorm, five in LayerNorm.
    None where it cannot be traced."""


def measure_cost(model: Model, image_shape: ImageShape) -> ModelCost:
    """Count parameters, and with fvcore multiply-accumulates, for one image [C, H, W]."""
    num_params = sum(leaf.numel() for leaf in model.skeleton.parameters())
    try:
        return ModelCost(num_params, int(_analyze(model, image_shape)[0].total()))
    except Exception:  # of torch.jit.trace, which takes no compiled function for one; the model may still be trained
        return ModelCost(num_params, None)


def count_activations(model: Model, image_shape: ImageShape) -> int:
    """Elements of the outputs of convolutions and matrix products for one image (arXiv 2003.13678, section 2.2)."""
    _, activations = _analyze(model, image_shape)
    return int(activations.total())


def layer_table(model: Model, image_shape: ImageShape, *, depth: int) -> str:
    """A table of what each layer costs for one image [C, H, W], down to `depth` levels of submodules."""
    macs, activations = _analyze(model, image_shape)
    return flop_count_table(macs, max_depth=depth, activations=activations, show_param_shapes=False).replace(
        "#flops", "#MACs "
    )


def measure_latency(
    model: Model, image_shape: ImageShape, *, batch_size: int, device: torch.device, seconds: float = 1.0
) -> float:
    """Median seconds of an eager float32 forward pass over a batch, in evaluation mode, repeated for `seconds`."""
    from torch.utils.benchmark import Timer  # late: it looks for a C++ toolchain, which training does not need

    params, model_state = tree.map(lambda leaf: leaf.to(device), model.init(random.generator(0)))
    images = torch.zeros(batch_size, *image_shape, device=device).contiguous(memory_format=torch.channels_last)
    timer = Timer(
        "apply(params, model_state, images, train=False)",
        globals={"apply": model.apply, "params": params, "model_state": model_state, "images": images},
        num_threads=torch.get_num_threads(),
    )
    with torch.no_grad():
        return timer.blocked_autorange(min_run_time=seconds).median


def _analyze(model: Model, image_shape: ImageShape) -> tuple[FlopCountAnalysis, ActivationCountAnalysis]:
    # fvcore traces a module; the counts are the same with any weights.
    module = with_memory(model.skeleton)
    for leaf in (*module.parameters(), *module.buffers()):
        leaf.data.zero_()
    images = torch.zeros(1, *image_shape)
    macs, activations = FlopCountAnalysis(module, images), ActivationCountAnalysis(module, images)
    macs.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
    activations.set_op_handle("aten::scaled_dot_product_attention", _attention_activations)
    macs.set_op_handle("aten::_convolution_mode", _conv_macs)
    activations.set_op_handle("aten::_convolution_mode", lambda inputs, outputs: math.prod(outputs[0].type().sizes()))
    for analysis in (macs, activations):
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return macs, activations


def _attention_macs(inputs: list, outputs: list) -> int:
    """Queries times keys and weights times values, of N queries and M keys: B heads N M times both widths."""
    del outputs
    (*batch_and_heads, queries, width), keys, value_width = _attention_sizes(inputs)
    return math.prod(batch_and_heads) * queries * keys * (width + value_width)


def _attention_activations(inputs: list, outputs: list) -> int:
    """The outputs of the same two products: B heads N M, and B heads N times the width of the values."""
    del outputs
    (*batch_and_heads, queries, _), keys, value_width = _attention_sizes(inputs)
    return math.prod(batch_and_heads) * queries * (keys + value_width)


def _attention_sizes(inputs: list) -> tuple[list[int], int, int]:
    query, key, value = (each.type().sizes() for each in inputs[:3])
    return query, key[-2], value[-1]


def _conv_macs(inputs: list, outputs: list) -> int:
    """Of a convolution whose padding is a string, such as "same": each output sees a whole filter."""
    return math.prod(outputs[0].type().sizes()) * math.prod(inputs[1].type().sizes()[1:])
