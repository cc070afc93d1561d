import math

import pytest

from backbones.errors import InputError
from backbones.run.sweep.axes import Axis, draw, grid, parse_axes

LIST, SPAN = ["optim.lr", "1e-4", "1e-3"], ["optim.lr", "1e-4..1e-1:log"]


def test_a_grid_is_the_product() -> None:
    axes = parse_axes([LIST, ["label-smoothing", "0", "0.1"]])
    assert axes[1] == Axis("label_smoothing", ("0", "0.1"), None)
    assert grid(axes) == [
        {"optim.lr": lr, "label_smoothing": smoothing} for lr in ("1e-4", "1e-3") for smoothing in ("0", "0.1")
    ]


def test_draws_are_uniform_or_log_uniform_in_their_ranges_and_integers_where_they_must() -> None:
    axes = parse_axes([SPAN, ["clip", "1..3"], ["batch_size", "8..12"], ["seed", "0", "1", "2"]])
    drawn = draw(axes, 1000, seed=0, is_integer=lambda field: field == "batch_size")
    rates = [float(each["optim.lr"]) for each in drawn]
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    thirds = [sum(rate < bound for rate in rates) / 1000 for bound in (1e-3, 1e-2)]
    assert thirds == pytest.approx([1 / 3, 2 / 3], abs=0.05)
    clips = [float(each["clip"]) for each in drawn]
    assert min(clips) >= 1 and max(clips) <= 3 and sum(clips) / 1000 == pytest.approx(2, abs=0.1)
    sizes = [each["batch_size"] for each in drawn]
    assert {size: sizes.count(size) / 1000 for size in set(sizes)} == pytest.approx(
        {str(size): 1 / 5 for size in range(8, 13)}, abs=0.05
    )
    assert [sum(each["seed"] == seed for each in drawn) for seed in ("0", "1", "2")] == [334, 333, 333]
    assert drawn == draw(axes, 1000, seed=0, is_integer=lambda field: field == "batch_size")
    assert drawn[:3] == draw(axes, 3, seed=0, is_integer=lambda field: field == "batch_size")
    assert drawn[0] != draw(axes, 1, seed=1, is_integer=lambda field: field == "batch_size")[0]
    correlation = sum(math.log10(rate / 1e-4) * (clip - 2) for rate, clip in zip(rates, clips, strict=True)) / 1000
    assert abs(correlation) < 0.05


def test_draws_near_the_end_of_a_range_stay_in_it() -> None:
    (axis,) = parse_axes([["ema", "0.999..0.99999"]])
    values = [axis.at(i / 100, integer=False) for i in range(100)]
    assert len(set(values)) == 100 and all(0.999 <= float(value) <= 0.99999 for value in values)
    assert [float(value) for value in values] == pytest.approx(
        [0.999 + i / 100 * 0.00099 for i in range(100)], abs=1e-6
    )


def test_draws_of_lists_repeat_none() -> None:
    axes = parse_axes([LIST, ["seed", "0", "1", "2"]])
    drawn = draw(axes, 6, seed=3, is_integer=lambda field: False)
    assert sorted(map(str, drawn)) == sorted(map(str, grid(axes))) and drawn != grid(axes)


def test_draws_of_few_values_repeat_none() -> None:
    axes = parse_axes([["model.depth", "2..6"], ["seed", "0", "1"]])
    drawn = draw(axes, 5, seed=0, is_integer=lambda field: True)
    assert len(set(map(str, drawn))) == 5
    with pytest.raises(InputError, match="--random 6: only 5 different combinations were drawn; give wider ranges"):
        draw(axes[:1], 6, seed=0, is_integer=lambda field: True)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ([], "give --over FIELD VALUE"),
        ([[]], "--over FIELD has no values; give some"),
        ([["optim.lr"]], "--over optim.lr has no values; give some"),
        ([LIST, LIST], "--over optim.lr is given twice"),
        ([["seed", "0", "1", "0"]], "--over seed has 0 more than once"),
        ([["optim.lr", "1e-1..1e-3"]], "the low end must be below the high end, and both be finite$"),
        ([["optim.lr", "0..1:log"]], "must be below the high end, and both be above 0"),
        ([["optim.lr", "a..b"]], "a range is LOW..HIGH or LOW..HIGH:log, of numbers"),
        ([["optim.lr", "1e-3..1e-1", "1"]], "has other values beside the range"),
        ([["optim.lr", "1", "1e-3..1e-1"]], "has other values beside the range"),
    ],
)
def test_axes_that_are_none(over: list[list[str]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_axes(over)


def test_a_grid_of_a_range_and_too_many_draws() -> None:
    with pytest.raises(InputError, match=r"--over optim\.lr is a range, from which --random N draws"):
        grid(parse_axes([SPAN]))
    with pytest.raises(InputError, match="--random 3: there are 2 combinations"):
        draw(parse_axes([LIST]), 3, seed=0, is_integer=lambda field: False)
