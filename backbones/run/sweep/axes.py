"""The axes of a sweep as the command line has them, and the combinations of their values: a grid, or random draws."""

import math
import re
from collections.abc import Callable, Sequence
from itertools import product
from typing import Literal, NamedTuple

import torch

import backbones.random as random
from backbones.errors import InputError

MOST_DRAWS = 1000
"""For each combination that is wanted: draws that give one that was drawn before are repeated."""

Combination = dict[str, str]
"""Field -> its value, as on the command line."""


class Axis(NamedTuple):
    """An option that differs from member to member."""

    field: str
    """As `optim.weight_decay`."""
    values: tuple[str, ...]
    """As on the command line; the two ends of a range."""
    scale: Literal["linear", "log"] | None = None
    """Of a range, `LOW..HIGH` or `LOW..HIGH:log`: in what draws are uniform. None for a list of values."""

    def at(self, fraction: float, *, integer: bool) -> str:
        """The value at a fraction in [0, 1) of the range, in as few digits as keep it in the range and near there."""
        low, high = map(float, self.values)
        if integer:
            low, high = low - 0.5, high + 0.5
        if self.scale == "log":
            value = math.exp(math.log(low) + fraction * math.log(high / low))
        else:
            value = low + fraction * (high - low)
        if integer:
            return str(min(max(round(value), int(self.values[0])), int(self.values[1])))
        texts = (f"{value:.{digits}g}" for digits in range(4, 18))
        near = 1e-3 * (high - low)
        return next(each for each in texts if low <= float(each) <= high and abs(float(each) - value) <= near)


def parse_axis(words: Sequence[str]) -> Axis:
    """The axis that `--over FIELD VALUE...` or `--over FIELD LOW..HIGH[:log]` asks for.

    Raises:
        InputError: it has no values, one of them twice, or the ends of its range are not a range.
    """
    field, *values = words or ["FIELD"]
    field = field.removeprefix("--").replace("-", "_")
    if not values:
        raise InputError(f"--over {field} has no values; give some, as in --over optim.lr 1e-4 3e-4 1e-3")
    repeated = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    if repeated:
        raise InputError(f"--over {field} has {', '.join(repeated)} more than once; give each value once")
    number = r"([-+.\w]+?)"
    matches = [match for value in values if (match := re.fullmatch(rf"{number}\.\.{number}(:log)?", value))]
    if not matches:
        return Axis(field, tuple(values))
    if len(values) > 1:
        raise InputError(f"--over {field} has other values beside the range {matches[0][0]}; give one of both")
    low, high, log = matches[0].groups()
    try:
        is_range = -math.inf < float(low) < float(high) < math.inf and not (log and float(low) <= 0)
    except ValueError as error:
        raise InputError(f"--over {field} {values[0]}: a range is LOW..HIGH or LOW..HIGH:log, of numbers") from error
    if not is_range:
        above = "be above 0" if log else "be finite"
        raise InputError(f"--over {field} {values[0]}: the low end must be below the high end, and both {above}")
    return Axis(field, (low, high), "log" if log else "linear")


def parse_axes(over: Sequence[Sequence[str]]) -> list[Axis]:
    """The axes of a command line.

    Raises:
        InputError: there are none, two are of one field, or as `parse_axis`.
    """
    axes = [parse_axis(words) for words in over]
    if not axes:
        raise InputError("a sweep needs an option to vary: give --over FIELD VALUE ...")
    fields = [axis.field for axis in axes]
    for field in fields:
        if fields.count(field) > 1:
            raise InputError(f"--over {field} is given twice; give all its values after one of them")
    return axes


def grid(axes: Sequence[Axis]) -> list[Combination]:
    """All combinations; the values of the last axis change first.

    Raises:
        InputError: an axis is a range.
    """
    for axis in axes:
        if axis.scale is not None:
            raise InputError(f"--over {axis.field} is a range, from which --random N draws; give it, or give values")
    return [
        dict(zip([axis.field for axis in axes], values, strict=True)) for values in product(*(a.values for a in axes))
    ]


def draw(axes: Sequence[Axis], number: int, *, seed: int, is_integer: Callable[[str], bool]) -> list[Combination]:
    """Some different combinations at random; each is a function of the seed and of those before it.

    Those of the axes without a range come in a random order of their grid, again and again.

    Args:
        axes: with or without ranges.
        number: of combinations.
        seed: of the draws.
        is_integer: whether a field is an integer.

    Raises:
        InputError: there are not so many combinations, or they were not found in `MOST_DRAWS` draws for each.
    """
    ranges = [(i, axis) for i, axis in enumerate(axes) if axis.scale is not None]
    combinations = grid([axis for axis in axes if axis.scale is None])
    if not ranges and number > len(combinations):
        raise InputError(f"--random {number}: there are {len(combinations)} combinations; without --random all are run")
    integers = {axis.field for _, axis in ranges if is_integer(axis.field)}
    order = torch.randperm(len(combinations), generator=random.generator(seed)).tolist()
    drawn: list[Combination] = []
    for i_draw in range(MOST_DRAWS * number):
        key = random.fold_in(random.key(seed), i_draw)
        values = {
            axis.field: axis.at(random.uniform(random.fold_in(key, i)).item(), integer=axis.field in integers)
            for i, axis in ranges
        }
        values |= combinations[order[len(drawn) % len(order)]]
        combination = {axis.field: values[axis.field] for axis in axes}
        if combination not in drawn:
            drawn.append(combination)
        if len(drawn) == number:
            return drawn
    raise InputError(
        f"--random {number}: only {len(drawn)} different combinations were drawn; give wider ranges, or fewer"
    )
