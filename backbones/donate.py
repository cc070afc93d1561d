"""Eager functions in the memory of their arguments, as `jax.jit(donate_argnums=...)` has it.

A pure function writes every result into new memory, and an update of many leaves goes through all of them once for each
of its operators. Here it is traced once into a graph of torch's operators, which is then run in another order, one leaf
after the other, each elementwise operator writing into an operand that is not read again: the arithmetic is the same to
the last bit, and the memory is that of an optimizer that works in place. No compiler is asked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

import backbones.tree as tree


def donating(function: Callable[..., tree.Tree], donate_argnums: Sequence[int]) -> Callable[..., tree.Tree]:
    """`function` from trees to a tree of tensors, run in the memory of some of its arguments, which are used up.

    Args:
        function: pure, and without branches on values; every call brings leaves of the same shapes and dtypes.
        donate_argnums: positions of the arguments that are used up. None of their leaves may share memory.
    """
    program, structure = None, None

    def call(*args: tree.Tree) -> tree.Tree:
        nonlocal program, structure
        leaves = tree.leaves(args)
        if program is None:

            def flat(*leaves: Tensor) -> list[Tensor]:
                nonlocal structure
                structure = function(*tree.unflatten(args, leaves))
                return tree.leaves(structure)

            is_donated = [i in donate_argnums for i, arg in enumerate(args) for _ in tree.leaves(arg)]
            # on shapes alone: nothing is computed
            module = make_fx(functionalize(flat, remove="mutations"), tracing_mode="fake")(*leaves)
            program = GraphModule(module, _write_over(_leaf_by_leaf(module.graph), is_donated))
        return tree.unflatten(structure, program(*leaves))

    return call


def _leaf_by_leaf(graph: Graph) -> Graph:
    """The graph in an order that makes each value as late, and uses it as early, as can be."""
    order: dict[Node, None] = dict.fromkeys(node for node in graph.nodes if node.op in ("placeholder", "get_attr"))

    def emit(node: Node) -> None:
        if node in order:
            return
        for operand in node.all_input_nodes:
            emit(operand)
        order[node] = None
        if not _is_scalar(node):  # what a rate is used for comes in turn, leaf by leaf
            for user in node.users:
                if user.op != "output" and all(operand in order for operand in user.all_input_nodes):
                    emit(user)

    results = graph.output_node().args[0]
    for result in results:
        emit(result)
    ordered, copies = Graph(), {}
    for node in order:
        copies[node] = ordered.node_copy(node, copies.__getitem__)
    ordered.output([copies[result] for result in results])
    return ordered


def _write_over(graph: Graph, is_donated: Sequence[bool]) -> Graph:
    """The graph with elementwise operators that write into an operand which is not read again, where there is one."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    kept = {node for node, donated in zip(placeholders, is_donated, strict=True) if not donated}
    kept |= {node for node in graph.nodes if node.op == "get_attr" or _shares_memory(node)}
    kept |= set(graph.output_node().args[0])
    last_use = {operand: node for node in graph.nodes for operand in node.all_input_nodes}
    for node in graph.nodes:
        out = _out_form(node)
        if out is None:
            continue
        # Into an argument rather than an intermediate: what comes out shall lie where it lay.
        for operand in sorted(node.all_input_nodes, key=lambda operand: operand.op != "placeholder"):
            if operand not in kept and last_use[operand] is node and _layout(operand) == _layout(node):
                node.target, node.kwargs = out, {**node.kwargs, "out": operand}
                kept.add(operand)
                break
    return graph


def _is_scalar(node: Node) -> bool:
    value = node.meta["val"]
    return isinstance(value, Tensor) and value.ndim == 0


def _shares_memory(node: Node) -> bool:
    """Whether the memory of a value is that of another value too."""
    return any(_is_view(each) for each in (node, *node.users))


def _is_view(node: Node) -> bool:
    """`getitem`, of the results of an operator with several, counts too."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and (schema is None or any(each.alias_info for each in schema.returns))


def _layout(node: Node) -> tuple[Any, ...] | None:
    value = node.meta["val"]
    return (value.shape, value.stride(), value.dtype, value.device) if isinstance(value, Tensor) else None


def _out_form(node: Node) -> torch._ops.OpOverload | None:
    """The form of an elementwise operator that writes into memory which it is given."""
    if node.op != "call_function" or torch.Tag.pointwise not in getattr(node.target, "tags", ()) or _is_scalar(node):
        return None
    packet = node.target.overloadpacket
    wanted = [str(argument.type) for argument in node.target._schema.arguments]
    for name in packet.overloads():
        overload = getattr(packet, name)
        arguments = overload._schema.arguments
        if [str(a.type) for a in arguments if not a.is_out] == wanted and sum(a.is_out for a in arguments) == 1:
            return overload
    return None
