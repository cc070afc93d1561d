"""Ranges of numbers in annotations, and the checks of values against them and against literals."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from backbones.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


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
NonNegativeInt = Annotated[int, Range("[0, inf)")]
Seed = Annotated[int, Range("[0, 9223372036854775808)")]  # an int64
Share = Annotated[float, Range("(0, 1]")]


def range_of(annotation: Any) -> Range | None:
    """The `Range` in an annotation, also in that of a member of a union or of the elements of a tuple."""
    if isinstance(annotation, Range):
        return annotation
    parts = [*get_args(annotation), *getattr(annotation, "__metadata__", ())]
    return next((found for found in map(range_of, parts) if found is not None), None)


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """The values of each `Literal` in an annotation, also in the members of a union."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(choice for part in get_args(annotation) for choice in choices_of(part))


def _mentions(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(_mentions(part, kind) for part in get_args(annotation))


def _members(annotation: Any) -> list[Any]:
    """The types of which a value may be one: those of a union, without their metadata."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [each for member in get_args(annotation) for each in _members(member)]
    return [annotation]


def is_tuple(annotation: Any) -> bool:
    """Whether a value may be a tuple."""
    return any(get_origin(member) is tuple for member in _members(annotation))


def is_of_any_length(annotation: Any) -> bool:
    """Whether a value may be a tuple of any number of elements."""
    return any(get_origin(member) is tuple and Ellipsis in get_args(member) for member in _members(annotation))


def _wanted_kind(annotation: Any, value: Any) -> str | None:
    """What to ask for where a value is None, one number or several and the annotation takes something else; None if it
    fits."""
    interval, members = range_of(annotation), _members(annotation)
    if value is None and type(None) in members:
        return None
    if interval is None:
        several = isinstance(value, tuple | list) and all(get_origin(each) is not tuple for each in members)
        choices = choices_of(annotation) if several or value is None else ()
        return _one_of(choices) if choices else None
    sizes = [
        Ellipsis if Ellipsis in get_args(each) else len(get_args(each)) for each in members if get_origin(each) is tuple
    ]
    if not sizes:
        return f"one number, {interval}" if value is None or isinstance(value, tuple | list) else None
    if not isinstance(value, tuple | list):
        return None if {int, float} & {*members} else f"several numbers, each {interval}"
    return None if {Ellipsis, len(value)} & {*sizes} else f"{sizes[0]} numbers, each {interval}"


def _wanted_instead(annotation: Any, value: Any) -> str | None:
    """What is wanted instead of a value, or None if it is right."""
    interval, choices = range_of(annotation), choices_of(annotation)
    if getattr(value, "ndim", None) == 0:  # a scalar of numpy or torch
        value = value.item()
    if bool in (members := _members(annotation)) and {*members} <= {bool, type(None)}:
        return None if type(value) in members else "true or false"
    if value is not None and interval is not None and isinstance(value, int | float | str):
        integer = _mentions(annotation, int) and not _mentions(annotation, float)
        if isinstance(value, bool | str) or (integer and isinstance(value, float)):
            return f"an integer, {interval}" if integer else f"a number, {interval}"
        return None if value in interval else str(interval)
    return _one_of(choices) if value is not None and choices and value not in choices else None


def _one_of(choices: tuple[Any, ...]) -> str:
    return f"one of {', '.join(map(str, choices))}"


def check_values(annotations: Mapping[str, Any], values: Mapping[str, Any], *, prefix: str = "") -> None:
    """Check values against the `Range` or the `Literal` of their annotations, and those that are true or false.

    Args:
        annotations: name -> annotation; names without a `Range`, a `Literal` or `bool` may have any value.
        values: name -> value, tuple of values, or None.
        prefix: stands before the name in the message, such as `--optim.`.

    Raises:
        InputError: a number is outside its range, NaN, or no integer where one is wanted; it is None, a tuple or no
            tuple where the annotation has none; or it is another value than the `Literal` has.
    """
    for name, value in values.items():
        annotation, shown = annotations.get(name), f"{prefix}{name.replace('_', '-') if prefix else name}"
        if (wanted := _wanted_kind(annotation, value)) is not None:
            raise InputError(f"{shown} is {value!r}; it must be {wanted}")
        for element in value if isinstance(value, tuple | list) else (value,):
            if (wanted := _wanted_instead(annotation, element)) is not None:
                raise InputError(f"{shown} is {element!r}; it must be {wanted}")


def checked(function: Callable[P, R], *, prefix: str = "") -> Callable[P, R]:
    """Decorator: each call of `function` checks its arguments as `check_values` does."""
    signature = inspect.signature(function)
    annotations = {name: parameter.annotation for name, parameter in signature.parameters.items()}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check_values(annotations, signature.bind_partial(*args, **kwargs).arguments, prefix=prefix)
        return function(*args, **kwargs)

    return call
