"""Mistakes of the user: one exception for all of them, and the checks that raise it."""

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ParamSpec, TypeVar, get_args

P = ParamSpec("P")
R = TypeVar("R")


class InputError(ValueError):
    """A mistake that only the user can mend. The message says what was got, what was wanted and what to do."""


def check_known(kind: str, name: str, names: Iterable[str]) -> str:
    """Give `name` back if it is one of `names`, else raise an InputError that offers the nearest of them."""
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(f"unknown {kind} {name!r}; {hint}There are: {', '.join(names)}")
    return name


class Range:
    """The interval that a number must lie in, as metadata of its annotation: `Annotated[float, Range("[0, 1)")]`.

    Args:
        interval: in mathematical notation; square brackets include the bound, `inf` is no bound.
    """

    def __init__(self, interval: str) -> None:
        match = re.fullmatch(r"([\[(])(\S+), (\S+)([\])])", interval)
        assert match, interval
        self.interval = interval
        self.includes_low, self.includes_high = match[1] == "[", match[4] == "]"
        self.low, self.high = float(match[2]), float(match[3])
        self._names = match[2], match[3]

    def __contains__(self, value: float) -> bool:
        above = value > self.low or (self.includes_low and value == self.low)
        return above and (value < self.high or (self.includes_high and value == self.high))

    def __str__(self) -> str:
        """The interval in words, to go on from "it must be"."""
        low, high = self._names
        if self.high == float("inf"):
            return f"{low} or more" if self.includes_low else f"above {low}"
        if self.includes_low and self.includes_high:
            return f"from {low} to {high}"
        least, most = "at least" if self.includes_low else "above", "at most" if self.includes_high else "below"
        return f"{least} {low} and {most} {high}"

    def __repr__(self) -> str:
        return f"Range({self.interval!r})"


Count = Annotated[int, Range("[1, inf)")]
Probability = Annotated[float, Range("[0, 1)")]
NonNegative = Annotated[float, Range("[0, inf)")]
Positive = Annotated[float, Range("(0, inf)")]


def range_of(annotation: Any) -> Range | None:
    """The `Range` in an annotation, also in that of a member of a union or of the elements of a tuple."""
    if isinstance(annotation, Range):
        return annotation
    parts = [*get_args(annotation), *getattr(annotation, "__metadata__", ())]
    return next((found for found in map(range_of, parts) if found is not None), None)


def check_ranges(annotations: Mapping[str, Any], values: Mapping[str, Any], *, prefix: str = "") -> None:
    """Check numbers against the ranges of their annotations.

    Args:
        annotations: name -> annotation; names without a `Range` may have any value.
        values: name -> number, tuple of numbers, or None.
        prefix: stands before the name in the message, such as `--optim.`.

    Raises:
        InputError: a number is outside its range, or is NaN.
    """
    for name, value in values.items():
        wanted = range_of(annotations.get(name))
        if wanted is None or value is None:
            continue
        for number in value if isinstance(value, tuple | list) else (value,):
            if isinstance(number, int | float) and number not in wanted:
                shown = f"{prefix}{name.replace('_', '-') if prefix else name}"
                raise InputError(f"{shown} is {number}; it must be {wanted}")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: each call of `function` checks its arguments against the ranges of their annotations."""
    signature = inspect.signature(function)
    annotations = {name: parameter.annotation for name, parameter in signature.parameters.items()}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check_ranges(annotations, signature.bind_partial(*args, **kwargs).arguments)
        return function(*args, **kwargs)

    return call
