from functools import partial
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import compilation_time_metrics

import backbones.tree as tree
from backbones.jit import jit


def step(state: dict[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    state = {"a": state["a"] * 0.5 + x, "count": state["count"] + 1}
    return state, {"sum": state["a"].sum()}


def make_state() -> dict[str, Tensor]:
    return {"a": torch.arange(6.0), "count": torch.tensor(0)}


def test_eager_is_the_function_itself() -> None:
    assert jit(step, mode="eager", donate=True) is step


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["compile", "cudagraph"])
def test_a_donated_state_keeps_its_memory(mode: str) -> None:
    expected, fast = make_state(), make_state()
    addresses = [leaf.data_ptr() for leaf in tree.leaves(fast)]
    compiled = jit(step, mode=mode, donate=True)
    metrics = []
    for i in range(3):
        expected, wanted = step(expected, torch.tensor(float(i)))
        fast, got = compiled(fast, torch.tensor(float(i)))
        metrics.append((got, wanted))
    assert [leaf.data_ptr() for leaf in tree.leaves(fast)] == addresses
    assert all(torch.equal(fast[name], expected[name]) for name in fast)
    assert all(torch.equal(got["sum"], wanted["sum"]) for got, wanted in metrics)  # no later call wrote over them


@pytest.mark.slow
def test_a_function_is_traced_once() -> None:
    """By itself Dynamo takes the 0-D float64 tensor for a Python number, and begins anew."""
    compilation_time_metrics.clear()
    with mock.patch("torch.compile", partial(torch.compile, backend="aot_eager")):
        compiled = jit(lambda x, lr: x * lr, mode="compile")
    compiled(torch.arange(6.0), torch.tensor(0.1, dtype=torch.float64))
    assert "compile_attempt_0" in compilation_time_metrics and "compile_attempt_1" not in compilation_time_metrics


@pytest.mark.slow
def test_nothing_is_donated_unless_said() -> None:
    state = make_state()
    with mock.patch("torch.compile", partial(torch.compile, backend="aot_eager")):
        compiled = jit(lambda state, x: step(state, x)[0], mode="compile")
    new_state = compiled(state, torch.tensor(1.0))
    assert state["count"] == 0 and new_state["count"] == 1


def test_python_runs_line_by_line_where_it_is_eager() -> None:
    seen = []

    def look(state: dict[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        seen.append(x.item())
        return step(state, x)

    jit(look, mode="eager", donate=True)(make_state(), torch.tensor(3.0))
    assert seen == [3.0]
