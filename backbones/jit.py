"""The one place that compiles: `jit(function)` is `function`, eager, compiled, or replayed as a CUDA graph."""

import os
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

import backbones.tree as tree

# Dynamo takes a 0-D float64 tensor for a possible Python number, and then traces a second time, which doubles the time
# to compile. Our functions take only tensors.
os.environ.setdefault("TENSORIFY_PYTHON_SCALARS", "0")

Mode = Literal["eager", "compile", "cudagraph"]


def jit(
    function: Callable[..., Any], *, mode: Mode = "eager", donate: bool = False, fullgraph: bool = True
) -> Callable[..., Any]:
    """A pure function of trees of tensors, made fast; what it computes stays the same.

    Args:
        function: called with leaves of the same shapes and dtypes each time.
        mode: `eager` runs Python line by line, so that `print`, `breakpoint()` and `.item()` work; `compile` is
            `torch.compile`; `cudagraph` also replays the compiled graph as a CUDA graph, where there is a GPU.
        donate: the function returns `(state, rest)`, and the new state is written into the memory of its first
            argument, which must not be used again, as with `jax.jit(donate_argnums=0)`. An eager function writes over
            nothing: the old state is freed when nothing refers to it any more.
        fullgraph: compile the whole function as one graph, or raise.
    """
    if mode == "eager":
        return function

    def mutating(state: tree.Tree, *args: tree.Tree) -> tree.Tree:
        new_state, rest = function(state, *args)
        tree.map(Tensor.copy_, state, new_state)
        return rest

    compiled = torch.compile(
        mutating if donate else function, fullgraph=fullgraph, mode="reduce-overhead" if mode == "cudagraph" else None
    )

    def call(*args: tree.Tree) -> Any:
        if mode == "cudagraph":
            torch.compiler.cudagraph_mark_step_begin()
            if donate:
                tree.map(torch._dynamo.mark_static_address, args[0])  # the graph reads and writes the state in place
        result = compiled(*args)
        if mode == "cudagraph":
            result = tree.map(torch.clone, result)  # the next replay overwrites what this one returned
        return (args[0], result) if donate else result

    return call
