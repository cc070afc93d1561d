import math
import re
from typing import Annotated, Literal

import numpy as np
import pytest
import torch

from backbones.errors import InputError
from backbones.ranges import Count, Probability, Range, check_values, checked, range_of


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "words"),
    [
        ("[0, 1)", [0, 0.5], [-0.1, 1, math.nan, math.inf], "at least 0 and below 1"),
        ("(0, 1]", [1e-9, 1], [0, 1.1, math.nan], "above 0 and at most 1"),
        ("[1, inf)", [1, 1e9], [0, math.inf, math.nan], "1 or more"),
        ("(0, inf)", [1e-9], [0, math.inf], "above 0"),
        ("[1, 64]", [1, 64], [0, 65], "from 1 to 64"),
    ],
)
def test_range(interval: str, inside: list[float], outside: list[float], words: str) -> None:
    wanted = Range(interval)
    assert all(value in wanted for value in inside) and not any(value in wanted for value in outside)
    assert str(wanted) == words


def test_ranges_are_found_in_annotations() -> None:
    assert str(range_of(Count | None)) == "1 or more"
    assert str(range_of(tuple[Probability, ...])) == "at least 0 and below 1"
    assert range_of(int) is None


def test_values_are_checked_one_by_one() -> None:
    annotations = {"a": Count | None, "b": tuple[Probability, ...], "c": str}
    check_values(annotations, {"a": None, "b": (0.0, 0.5), "c": "x"})
    with pytest.raises(InputError, match=r"b is 1\.0; it must be at least 0 and below 1"):
        check_values(annotations, {"b": (0.0, 1.0)})
    for wrong in (1.0, "1", True):
        with pytest.raises(InputError, match=f"a is {wrong!r}; it must be an integer, 1 or more"):
            check_values(annotations, {"a": wrong})
    with pytest.raises(InputError, match="b is 'x'; it must be a number, at least 0 and below 1"):
        check_values(annotations, {"b": ("x",)})
    with pytest.raises(InputError, match="--batch-size is 0; it must be 1 or more"):
        check_values({"batch_size": Count}, {"batch_size": 0}, prefix="--")


def test_scalars_of_numpy_and_torch_are_numbers() -> None:
    annotations = {"a": Count, "several": tuple[Probability, ...]}
    check_values(annotations, {"a": np.int64(3), "several": (torch.tensor(0.5),)})
    for name, wrong, wanted in (
        ("a", np.int64(0), "1 or more"),
        ("a", torch.tensor(1.5), "an integer, 1 or more"),
        ("several", (np.float32(2),), "at least 0 and below 1"),
    ):
        with pytest.raises(InputError, match=f"{name} is .*; it must be {wanted}"):
            check_values(annotations, {name: wrong})


def test_one_number_or_several_or_none() -> None:
    pair = Annotated[tuple[float, float], Range("(0, 1]")]
    annotations = {"a": Count, "b": pair, "c": tuple[Probability, ...], "d": Count | None, "f": int}
    check_values(annotations, {"a": 1, "b": (0.1, 1.0), "c": (), "d": None, "f": None})
    check_values(annotations, {"b": [0.1, 1.0], "c": (0.5,), "g": None})
    for name, wrong, wanted in (
        ("a", None, "one number, 1 or more"),
        ("a", (1, 2), "one number, 1 or more"),
        ("b", 0.5, "several numbers, each above 0 and at most 1"),
        ("b", (0.5,), "2 numbers, each above 0 and at most 1"),
        ("b", None, "several numbers, each above 0 and at most 1"),
        ("d", (1,), "one number, 1 or more"),
    ):
        with pytest.raises(InputError, match=re.escape(f"{name} is {wrong!r}; it must be {wanted}")):
            check_values(annotations, {name: wrong})


def test_values_of_a_literal() -> None:
    annotations = {"device": Literal["cpu", "cuda"] | None}
    check_values(annotations, {"device": "cpu"})
    check_values(annotations, {"device": None})
    with pytest.raises(InputError, match="--device is 'tpu'; it must be one of cpu, cuda"):
        check_values(annotations, {"device": "tpu"}, prefix="--")


def test_true_and_false_are_no_text() -> None:
    annotations = {"flip": bool, "maybe": bool | None, "either": bool | str}
    check_values(annotations, {"flip": True, "maybe": None, "either": "no"})
    for wrong in ("no", 1, None):
        with pytest.raises(InputError, match=f"flip is {wrong!r}; it must be true or false"):
            check_values(annotations, {"flip": wrong})
    with pytest.raises(InputError, match="--maybe is 'no'; it must be true or false"):
        check_values(annotations, {"maybe": "no"}, prefix="--")


def test_checked_functions_refuse_each_bad_call() -> None:
    @checked
    def double(x: Annotated[float, Range("[0, inf)")], y: int = 1) -> float:
        """Doc."""
        return 2 * x * y

    assert double(2) == 4 and double(x=2, y=3) == 12 and double.__doc__ == "Doc."
    with pytest.raises(InputError, match="x is -1; it must be 0 or more"):
        double(-1)
