import itertools
import math
from pathlib import Path
from unittest import mock

import pytest
from helpers.sweeps import VIT
from matplotlib.axes import Axes
from PIL import Image

from backbones.run.sweep.members import Member, Sweep
from backbones.run.sweep.plot import plot_sweep
from backbones.run.sweep.table import Row, to_markdown

SEEDS = {"seed": [0, 1]}
RATES = {"optim.lr": [1e-4, 1e-3, 1e-2]}
MODELS = {"model": ["resnet18", "vit-tiny"]}


def rows_of(axes: dict[str, list]) -> tuple[Sweep, list[Row]]:
    """A sweep over a grid, whose n-th member has a top-1 of n %, and the first has diverged."""
    values = [dict(zip(axes, each, strict=True)) for each in itertools.product(*axes.values())]
    members = [Member(str(i), each, VIT, 10) for i, each in enumerate(values)]
    rows = [Row(member, "finished", 10, 0.01 * i, 1.0, 2.0) for i, member in enumerate(members)]
    rows[0] = Row(members[0], "diverged", 4)
    return Sweep(VIT, {field: [*map(str, each)] for field, each in axes.items()}, None, members), rows[::-1]


@pytest.mark.parametrize("axes", [SEEDS, RATES, MODELS | SEEDS, RATES | SEEDS, RATES | MODELS, RATES | MODELS | SEEDS])
def test_every_kind_of_sweep_is_drawn(axes: dict[str, list], tmp_path: Path) -> None:
    sweep, rows = rows_of(axes)
    with (
        mock.patch.object(Axes, "plot", autospec=True, side_effect=Axes.plot) as plot,
        mock.patch.object(Axes, "imshow", autospec=True, side_effect=Axes.imshow) as imshow,
    ):
        plot_sweep(sweep, rows, tmp_path / "sweep.png")
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.width > 300
    if len(axes.keys() - {"seed"}) == 2:
        (means,) = (call.args[1] for call in imshow.call_args_list)
        if "seed" not in axes:
            assert math.isnan(means[0][0]) and [means[0][1], *means[1], *means[2]] == pytest.approx(
                [0.01, 0.02, 0.03, 0.04, 0.05]
            )
        else:
            assert means[0][0] == pytest.approx(0.01) and means[2][1] == pytest.approx(0.105)
        return
    assert not imshow.called
    _, x, y = plot.call_args_list[0].args[:3]
    assert len(x) == len(rows) and y[1:] == pytest.approx([0.01 * i for i in range(1, len(rows))])
    if axes == RATES | SEEDS:
        assert x == [1e-4, 1e-4, 1e-3, 1e-3, 1e-2, 1e-2]
        _, x, y = plot.call_args_list[1].args[:3]
        assert x == RATES["optim.lr"] and y == pytest.approx([0.01, 0.025, 0.045])


def test_groups_of_seeds_are_sorted_by_their_mean() -> None:
    sweep, rows = rows_of(RATES | SEEDS)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in to_markdown(sweep, rows).splitlines()]
    assert lines[2:] == [
        ["0.01", "4.50 ± 0.71", "2.0000 ± 0.0000", "10", "2"],
        ["0.001", "2.50 ± 0.71", "2.0000 ± 0.0000", "10", "2"],
        ["0.0001", "1.00", "2.0000", "10", "1 of 2: 1 diverged"],
    ]


@pytest.mark.parametrize("axes", [RATES | SEEDS, RATES | MODELS | SEEDS])
def test_means_are_of_equally_many_steps(axes: dict[str, list], tmp_path: Path) -> None:
    """Halving has stopped the first seed early, and both of the first rate."""
    sweep, rows = rows_of(axes)
    rows = [
        row._replace(status="stopped", steps=3, top1=0.9)
        if row.member.values["seed"] == 0 or row.member.values["optim.lr"] == 1e-4
        else row
        for row in rows
    ]
    with (
        mock.patch.object(Axes, "plot", autospec=True, side_effect=Axes.plot) as plot,
        mock.patch.object(Axes, "imshow", autospec=True, side_effect=Axes.imshow) as imshow,
        mock.patch.object(Axes, "text", autospec=True, side_effect=Axes.text) as text,
    ):
        plot_sweep(sweep, rows, tmp_path / "sweep.png")
    if axes == RATES | SEEDS:
        assert plot.call_args_list[1].args[2] == pytest.approx([0.9, 0.03, 0.05])
    else:
        assert imshow.call_args.args[1] == [pytest.approx(each) for each in ([0.9, 0.9], [0.05, 0.07], [0.09, 0.11])]
        texts = [call.args[3] for call in text.call_args_list]
        assert texts[:3] == ["90.00%\nat step 3", "90.00%\nat step 3", "5.00%"]
