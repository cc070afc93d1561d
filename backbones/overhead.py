"""What a model costs: parameters and multiply-accumulates."""

import math
import warnings
from typing import NamedTuple

import torch
from torch.fx.experimental.proxy_tensor import make_fx

import backbones.random as random
import backbones.tree as tree
from backbones.models import Model

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".*torch.jit.script. is deprecated")  # what importing fvcore calls
    from fvcore.nn import FlopCountAnalysis


class Overhead(NamedTuple):
    """The price of one model."""

    num_params: int
    macs: int
    """Multiply-accumulates of one forward pass over one image: convolutions, matrix products and attention."""


def measure_overhead(model: Model, image_shape: tuple[int, int, int]) -> Overhead:
    """Count the parameters of a model, and with fvcore its multiply-accumulates for one image [C, H, W]."""
    params, model_state = model.init(random.generator(0))
    images = torch.zeros(1, *image_shape)
    # fvcore traces with torch.jit, which functional_call refuses: give it the graph of operators instead.
    graph = make_fx(lambda images: model.apply(params, model_state, images, train=False)[0])(images)
    analysis = FlopCountAnalysis(graph, images)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    analysis.set_op_handle("aten::_scaled_dot_product_flash_attention_for_cpu", _attention_macs)
    return Overhead(tree.size(params), int(analysis.total()))


def _attention_macs(inputs: list, outputs: list) -> int:
    """Queries times keys and weights times values: twice B heads N^2 D/heads."""
    del outputs
    *batch_and_heads, tokens, width = inputs[0].type().sizes()
    return 2 * math.prod(batch_and_heads) * tokens**2 * width
