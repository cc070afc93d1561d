"""The page of a report: what it says of runs, and what it is made of."""

import base64
import dataclasses
import io
import itertools
import json
import math
import os
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree as xml

import numpy as np
import pytest
import torch
from helpers.processes import run as run_process
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import backbones.machine as machine
from backbones.augment import crop_flip
from backbones.commands.evaluate import evaluate
from backbones.component import use
from backbones.data import Dataset, digits, in_memory
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.models.vit import vit_tiny
from backbones.optim import adam, sgd
from backbones.run.analysis.augment_sheet import make_sheet
from backbones.run.analysis.model_evaluation import load_predictor
from backbones.run.checkpoint import read_checkpoint
from backbones.run.report.curves import HEIGHT, LEFT, MOST_POINTS, RIGHT, WIDTH, make_panel, thin
from backbones.run.report.groups import Group, differences, group_runs
from backbones.run.report.make_report import _file_names, make_report
from backbones.run.report.overview import draw_overview
from backbones.run.report.runs import Run
from backbones.run.run import run
from backbones.types import CPU

TINY = Experiment(
    name="tiny",
    data=use(digits),
    augment=use(crop_flip, padding=1, flip=False),
    model=use(vit_tiny, patch_size=8, width=16, depth=1, heads=2, mlp_width=32),
    optim=use(adam, lr=1e-3),
    steps=4,
    batch_size=8,
    log_every=1,
    eval_every=2,
    save_every=2,
    device="cpu",
)


NONE = "\N{EN DASH}"
"""What stands in the place of a number that is not known."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: `a` and `b` with two seeds, `c` with another optimizer, and `d` like it with another rate, stopped at step
    2. Not to be changed."""
    folder, peaks = tmp_path_factory.mktemp("runs"), itertools.count(10**9, 10**7)
    with mock.patch.object(machine, "peak_memory", lambda device: next(peaks)):  # of each more than of those before
        run(TINY, run_dir=folder / "a")
        run(dataclasses.replace(TINY, seed=7), run_dir=folder / "b")
        run(dataclasses.replace(TINY, optim=use(sgd, lr=0.1)), run_dir=folder / "c")
    shutil.copytree(folder / "a", folder / "d")
    config = dataclasses.replace(TINY, optim=use(adam, lr=3e-3)).to_json()
    (folder / "d" / "config.json").write_text(json.dumps(config))
    (folder / "d" / "result.json").unlink()
    lines = (folder / "d" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "d" / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 2))
    return folder


@pytest.fixture(scope="module")
def out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of all of them."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    make_report([folder / name for name in "abcd"], out)
    return out


def parse(page: Path) -> xml.Element:
    """The elements of a page, which is XML too: raises an error if one is not closed or a name is not escaped."""
    return xml.fromstring(page.read_text())


def text_of(element: xml.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def tables(element: xml.Element) -> Iterator[tuple[list[str], dict[str, dict[str, xml.Element]]]]:
    """The headings of each table; and its rows, by their first cell, as heading -> cell."""
    for table in element.iter("table"):
        headings = [text_of(cell) for cell in table.find("thead/tr")]
        yield headings, {text_of(row[0]): dict(zip(headings, row, strict=True)) for row in table.iterfind("tbody/tr")}


def values(cell: xml.Element) -> list[float]:
    return [float(data.get("value")) for data in cell.iter("data")]


def test_the_page_says_the_numbers_of_the_results(folder: Path, out: Path) -> None:
    formats = {"Top-1, %": ("top1", 100), "Top-5, %": ("top5", 100), "Loss": ("loss", 1)}
    rows = {name: row for headings, rows in tables(parse(out)) if headings[0] == "Folder" for name, row in rows.items()}
    for name in "abc":
        result, row = json.loads((folder / name / "result.json").read_text()), rows[str(folder / name)]
        for heading, (key, scale) in formats.items():
            assert values(row[heading]) == [result[key]]
            digits_shown = 2 if scale == 100 else 4
            assert text_of(row[heading]) == f"{scale * result[key]:.{digits_shown}f}"
        others = {"Images/s": "images_per_second", "Time": "seconds", "Memory": "peak_memory"}
        assert all(values(row[heading]) == [result[key]] for heading, key in others.items())
        size, unit = text_of(row["Memory"]).split()
        assert float(size) * {"MB": 1e6, "GB": 1e9}[unit] == pytest.approx(result["peak_memory"], rel=0.005)
        assert text_of(row["Steps"]) == "4"


def test_a_line_of_the_table_is_the_mean_over_the_seeds(folder: Path, out: Path) -> None:
    """With the sample standard deviation, the best first."""
    _, rows = next(tables(parse(out)))
    results = {name: json.loads((folder / name / "result.json").read_text()) for name in "abc"}
    both = next(row for name, row in rows.items() if "adam, lr 0.001" in name)
    top1 = [results[name]["top1"] for name in "ab"]
    mean, std = statistics.mean(top1), statistics.stdev(top1)
    assert values(both["Top-1, %"]) == pytest.approx([mean, std], rel=1e-12)
    assert text_of(both["Top-1, %"]) == f"{100 * mean:.2f} ± {100 * std:.2f}"
    assert text_of(both["Seeds"]) == "0, 7" and text_of(both["Device"]) == "cpu"
    assert values(both["Parameters"]) == [results["a"]["num_params"]] and values(both["MACs"]) == [results["a"]["macs"]]
    assert values(both["Memory"]) == [max(results[name]["peak_memory"] for name in "ab")]
    one = next(row for name, row in rows.items() if "sgd" in name)
    assert values(one["Top-1, %"]) == [results["c"]["top1"]] and "±" not in text_of(one["Top-1, %"])
    order = [values(row["Top-1, %"])[0] for row in rows.values()]
    assert len(order) == 3 and order == sorted(order, reverse=True)


def test_a_run_that_is_not_finished_is_shown_as_far_as_it_is(folder: Path, out: Path) -> None:
    line = [json.loads(line) for line in (folder / "d" / "metrics.jsonl").read_text().splitlines()][-1]
    _, rows = next(tables(parse(out)))
    (row,) = (row for name, row in rows.items() if name.endswith("not finished"))
    assert values(row["Top-1, %"]) == [line["top1"]] and line["step"] == 2
    assert text_of(row["Steps"]) == "2 of 4" and text_of(row["Parameters"]) == text_of(row["Memory"]) == NONE


def test_the_page_needs_no_script_and_no_network(out: Path) -> None:
    page = parse(out)
    assert not re.search(r"https?:|@import|url\(", out.read_text())
    for element in page.iter():
        assert element.tag not in ("script", "iframe", "object", "embed", "base", "form")
        assert not [name for name in element.attrib if name.startswith("on")]
        for name in ("src", "href"):
            assert element.get(name, "#").startswith(("#", "data:"))
    ids = {element.get("id") for element in page.iter()}
    assert {link.get("href")[1:] for link in page.iter("a")} <= ids


def test_the_page_can_be_read_aloud(out: Path) -> None:
    page = parse(out)
    assert page.get("lang") == "en" and len(list(page.iter("h1"))) == 1
    assert all(image.get("alt") for image in page.iter("img"))
    assert all(cell.get("scope") in ("row", "col") for cell in page.iter("th"))
    for drawing in page.iter("svg"):
        assert drawing.get("aria-hidden") or (drawing.get("role") == "img" and drawing.get("aria-label"))


def test_differences_and_commands(folder: Path, out: Path) -> None:
    page = parse(out)
    rows = next(rows for headings, rows in tables(page) if headings[0] == "Option")
    assert set(rows) == {"optim", "optim.lr", "optim.weight_decay"}
    assert sorted(text_of(cell) for cell in list(rows["optim.lr"].values())[1:]) == ["0.001", "0.003", "0.1"]
    assert all(
        heading.startswith("tiny (adam, lr 0.00") or heading.startswith("tiny (sgd, lr 0.1,")
        for heading in list(rows["optim"])[1:]
    )
    (start,) = json.loads((folder / "a" / "provenance.json").read_text())
    commands = [text_of(item) for item in page.iter("code")]
    assert any(command.endswith(start["command"].partition(" ")[2]) for command in commands)


def pixels(image: xml.Element) -> torch.Tensor:
    """[C, H, W] uint8."""
    content = base64.b64decode(image.get("src").partition("base64,")[2])
    with Image.open(io.BytesIO(content)) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def experiment_of(page: xml.Element, name: str) -> xml.Element:
    return next(each for each in page.iter("details") if each.get("id") and name in text_of(each.find("summary")))


def test_confusion_is_that_of_the_evaluation(folder: Path, out: Path, tmp_path: Path) -> None:
    evaluate(folder / "c", out=tmp_path)
    wanted = json.loads((tmp_path / "evaluation.json").read_text())
    part = experiment_of(parse(out), "sgd")
    confusion = next(rows for headings, rows in tables(part) if headings[0] == "")
    assert [[int(text_of(cell)) for cell in list(row.values())[1:]] for row in confusion.values()] == wanted[
        "confusion"
    ]
    scores = next(rows for headings, rows in tables(part) if headings[0] == "Class")
    for name, accuracy in zip(wanted["classes"], wanted["class_accuracy"], strict=True):
        assert values(scores[name]["Accuracy, %"]) == [accuracy]
    assert f"expected calibration error {100 * wanted['calibration_error']:.2f} %" in text_of(part)


def test_the_worst_mistakes_with_their_images(folder: Path, out: Path) -> None:
    predict = load_predictor(read_checkpoint(folder / "c" / "checkpoints" / "4"), TINY, CPU)
    test, everything = digits().test, torch.arange(364)
    confidence, predicted = predict(test.read(everything, everything)).softmax(dim=1).max(dim=1)
    worst = (confidence * (predicted != test.labels)).topk(24).indices
    figures = [each for each in experiment_of(parse(out), "sgd").iter("figure") if "predicted" in text_of(each)]
    figures = [each for each in figures if each.find("img") is not None]
    assert len(figures) == 24
    for i, figure in zip(worst.tolist(), figures, strict=True):
        shown = " ".join(span.text for span in figure.iter("span"))
        assert shown == f"true {test.labels[i]} predicted {predicted[i]} {confidence[i]:.1%}, #{i}"
        assert torch.equal(pixels(figure.find("img")), test.read(everything[i : i + 1], everything[:1])[0])


def test_the_first_batch_as_the_model_saw_it(folder: Path, out: Path) -> None:
    (pairs,) = (each for each in experiment_of(parse(out), "sgd").iter("div") if each.get("class") == "images pairs")
    sheet = make_sheet(TINY, digits(), TINY.augment, samples=16, variants=1, step=0)
    assert len(pairs) == len(sheet.labels) == 8
    for pair, original, (after,) in zip(pairs, sheet.original, sheet.variants, strict=True):
        before, augmented = (pixels(image) for image in pair.iter("img"))
        assert torch.equal(before, original) and torch.equal(augmented, after)


def test_the_same_as_png(out: Path) -> None:
    folder = out.with_name("report-png")
    kinds = ("confusion", "calibration", "mistakes", "augmented")
    stems = (
        "tiny-adam-lr-0.001-weight_decay-0.0",
        "tiny-adam-lr-0.003-weight_decay-0.0",
        "tiny-sgd-lr-0.1-weight_decay-0.0005",
    )
    names = {f"{stem}.{kind}.png" for stem in stems for kind in kinds}
    assert {path.name for path in folder.iterdir()} == {"overview.png", *names}
    for path in folder.iterdir():
        with Image.open(path) as picture:
            assert picture.format == "PNG" and min(picture.size) > 100


def hostile(device: torch.device = CPU) -> Dataset:
    """Names that are not good HTML, and more classes than a table holds."""
    names = tuple(f'<b class="{i}">&amp;' for i in range(40))
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 3, 16, 16).contiguous()
    split = images, torch.arange(40)
    return in_memory(split, split, names, device)


def test_names_are_escaped_and_many_classes_are_a_picture(tmp_path: Path) -> None:
    folder = tmp_path / "<i>&run"
    run(dataclasses.replace(TINY, data=use(hostile), steps=1), run_dir=folder)
    make_report([folder], tmp_path / "report.html", title="<b>&")
    page = parse(tmp_path / "report.html")
    assert text_of(next(page.iter("h1"))) == "<b>&" and not list(page.iter("b")) and not list(page.iter("i"))
    classes = next(rows for headings, rows in tables(page) if headings[0] == "Class")
    assert set(classes) == set(hostile().info.class_names)
    (matrix,) = (each for each in page.iter("img") if each.get("class") == "matrix")
    assert pixels(matrix).shape == (3, 40, 40)


def test_what_cannot_be_read_is_said_and_left_out(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """A damaged file, a run twice, a missing checkpoint: one line each, and the rest is shown."""
    for name in "abcd":
        shutil.copytree(folder / "a", tmp_path / name)
    (tmp_path / "b" / "result.json").write_text('{"top1": 0.')
    config = json.loads((tmp_path / "d" / "config.json").read_text())
    config["data"] = {"function": "broken_module:data", "options": {}}
    (tmp_path / "d" / "config.json").write_text(json.dumps(config))
    (tmp_path / "broken_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    made = make_report([tmp_path / name for name in "abcda"], tmp_path / "report.html")
    assert [[run.folder for run in group.runs] for group in made.groups] == [[tmp_path / "a"]]
    page = text_of(parse(tmp_path / "report.html"))
    assert all(note in page for note in made.notes)
    damaged, broken, repeated, without = made.notes
    assert broken == f"{tmp_path / 'd'} is left out: ZeroDivisionError: division by zero"
    assert damaged.startswith(f"{tmp_path / 'b'} is left out: {tmp_path / 'b' / 'result.json'} is damaged")
    assert repeated == f"{tmp_path / 'c'} is left out: it has the experiment and the seed of {tmp_path / 'a'}"
    assert without.startswith("The predictions of tiny are left out: there is no checkpoint in")


def absent(root: str = "nowhere") -> Dataset:
    """A data set that is not here."""
    raise InputError(f"there is no folder {root}")


def test_a_data_set_that_is_not_here(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "c", tmp_path / "run")
    config = dataclasses.replace(TINY, data=use(absent)).to_json()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    notes = make_report([tmp_path / "run"], tmp_path / "report.html").notes
    assert notes == ["The predictions of tiny are left out: there is no folder nowhere"]
    page = parse(tmp_path / "report.html")
    assert notes[0] in text_of(page) and not list(page.iter("img"))
    make_report([tmp_path / "run"], tmp_path / "report.html", images=False)
    assert notes[0] not in text_of(parse(tmp_path / "report.html"))


def test_a_model_whose_code_was_changed(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "a", tmp_path / "a")
    config = dataclasses.replace(TINY, model=TINY.model.replace(depth=2)).to_json()
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    (note,) = make_report([tmp_path / "a"], tmp_path / "report.html").notes
    assert note.startswith("The predictions of tiny are left out: ") and "\n" not in note


def test_files_of_older_runs_lack_times_and_memory(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "a", tmp_path / "a")
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    kept = {name: value for name, value in result.items() if name not in ("seconds", "peak_memory")}
    (tmp_path / "a" / "result.json").write_text(json.dumps(kept))
    (tmp_path / "a" / "provenance.json").unlink()
    make_report([tmp_path / "a"], tmp_path / "report.html", images=False)
    _, rows = next(tables(parse(tmp_path / "report.html")))
    (row,) = rows.values()
    assert text_of(row["Time"]) == text_of(row["Memory"]) == NONE and values(row["Top-1, %"]) == [result["top1"]]


def test_a_run_that_has_just_begun(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "c"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / name / "config.json", tmp_path / name)
    made = make_report([tmp_path / "a", tmp_path / "c"], tmp_path / "report.html")
    _, rows = next(tables(parse(tmp_path / "report.html")))
    assert [text_of(row["Steps"]) for row in rows.values()] == ["0 of 4"] * 2 and len(made.notes) == 2
    assert {text_of(row["Top-1, %"]) for row in rows.values()} == {NONE}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no run was given; name one run folder or several"),
        (["absent"], "there is no folder .*absent; name a run folder"),
        ([""], r"there is no run in .*; it holds runs: a, b, c, d; give .*/\*/"),
        (["a/checkpoints"], "there is no run in .*checkpoints: no .*config.json; name a run folder"),
    ],
)
def test_bad_folders(names: list[str], message: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        make_report([folder / name for name in names], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_no_run_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"no run can be read:\n  .*config.json is damaged"):
        make_report([tmp_path], tmp_path / "report.html")


def test_only_a_report_is_written_over(folder: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "index.html"
    foreign.write_text("<html>mine</html>")
    with pytest.raises(InputError, match=r"index.html is there already, and no report; delete it, or name another"):
        make_report([folder / "a"], foreign, images=False)
    assert foreign.read_text() == "<html>mine</html>"
    with pytest.raises(InputError, match=r"is a folder; name a file for the report, as --out .*report.html"):
        make_report([folder / "a"], tmp_path, images=False)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is there already, and no report"):
        make_report([folder / "a"], tmp_path / "pipe", images=False)
    for title in ("first", "second"):
        make_report([folder / "a"], tmp_path / "report.html", png=tmp_path / "png", images=False, title=title)
    assert text_of(next(parse(tmp_path / "report.html").iter("h1"))) == "second"
    assert [path.name for path in (tmp_path / "png").iterdir()] == ["overview.png"]


def test_a_folder_that_cannot_be_written_is_found_at_once(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("backbones.run.report.make_report._examine", mock.Mock(side_effect=AssertionError))
    (tmp_path / "file").touch()
    for png in (tmp_path / "file", tmp_path / "file" / "png"):
        with pytest.raises(OSError, match="file"):
            make_report([folder / "a"], tmp_path / "report.html", png=png)


def test_a_name_that_is_not_utf8(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "a", copied := tmp_path / os.fsdecode(b"caf\xe9"))
    make_report([copied], tmp_path / "report.html", images=False)
    assert r"caf\udce9" in (tmp_path / "report.html").read_text()


def made_up(
    seed: int, losses: dict[int, float | None], *, top1: float = 0.5, finished: bool = True, **options: object
) -> Run:
    lines = [{"step": step, "split": "train", "loss": loss} for step, loss in losses.items()]
    experiment = dataclasses.replace(TINY, seed=seed, **options)
    return Run(Path(f"run-{seed}"), experiment, finished, {"top1": top1}, lines, [])


def test_the_deviation_is_that_of_a_sample() -> None:
    top1 = [0.5, 0.7, 0.8]
    runs = [made_up(seed, {}, top1=value) for seed, value in enumerate(top1)]
    statistic = Group((*runs, made_up(3, {}, top1=0.1, finished=False), made_up(4, {}, top1=math.nan))).statistic(
        "top1"
    )
    assert statistic == pytest.approx((np.mean(top1), np.std(top1, ddof=1)))
    assert Group((runs[0],)).statistic("top1") == (0.5, None)


def test_curves_are_those_of_the_seeds_and_their_mean() -> None:
    """The mean is over finished runs, at the steps that all of them have."""
    group = Group(
        (
            made_up(0, {1: 4.0, 2: 2.0, 3: None, 4: math.inf}),
            made_up(1, {1: 2.0, 2: 1.0, 3: 9.0}),
            made_up(2, {1: 3.0}, finished=False),
        )
    )
    panel = make_panel("loss", [group], "train", "loss")
    assert [curve.is_mean for curve in panel.curves] == [False, False, False, True]
    one, other, _, mean = (dict(curve.points) for curve in panel.curves)
    assert max(other) == WIDTH - RIGHT and panel.x_ticks[0] == (LEFT, "0")
    assert [mean[x] for x in one] == pytest.approx([(one[x] + other[x]) / 2 for x in one], abs=0.1)
    height = {text: y for y, text in panel.y_ticks}
    assert height["2"] == one[max(one)] == other[min(other)] and height["4"] == one[min(one)]
    assert all(0 <= y <= HEIGHT for y in (*one.values(), *other.values()))
    assert make_panel("top-1", [group], "test", "top1") is None


def test_top1_is_curves_or_bars_where_each_run_was_evaluated_once(tmp_path: Path) -> None:
    def axes_of(*top1: dict[int, float]) -> Axes:
        runs = [made_up(0, {1: 2.0, 2: 1.0}, batch_size=8 * (i + 1)) for i in range(len(top1))]
        for each, values in zip(runs, top1, strict=True):
            each.lines.extend({"step": step, "split": "test", "top1": value} for step, value in values.items())
        with mock.patch.object(Figure, "savefig", autospec=True) as savefig:
            draw_overview([Group((each,)) for each in runs], tmp_path / "overview.png", title="")
        return savefig.call_args.args[0].axes[0]

    bars = axes_of({2: 0.75}, {4: 0.5})
    assert [bar.get_width() for bar in bars.patches] == [75, 50] and not bars.lines
    curves = axes_of({1: 0.25, 2: 0.75}, {4: 0.5})
    assert [list(line.get_ydata()) for line in curves.lines] == [[25, 75], [50]] and not curves.patches


def test_a_loss_that_spans_decades_is_on_a_logarithmic_axis() -> None:
    panel = make_panel("loss", [Group((made_up(0, {1: 10.0, 2: 1.0, 3: 0.1}),))], "train", "loss")
    (curve,) = panel.curves
    above, middle, below = (y for _, y in curve.points)
    assert middle - above == pytest.approx(below - middle, abs=0.2)
    assert {"0.1", "1", "10"} <= {tick.text for tick in panel.y_ticks}


def test_a_metric_that_never_changes() -> None:
    for value in (0.0, 2.5):
        panel = make_panel("loss", [Group((made_up(0, {1: value, 2: value}),))], "train", "loss")
        (curve,) = panel.curves
        labels = [tick.text for tick in panel.y_ticks]
        assert len({*labels}) == len(labels) > 1 and all(len(label) < 6 for label in labels)
        assert len({y for _, y in curve.points}) == 1 and 0 < curve.points[0][1] < HEIGHT


def test_long_curves_are_averaged_over_stretches() -> None:
    points = thin({step: float(step % 2) for step in range(10 * MOST_POINTS)})
    assert len(points) == MOST_POINTS and points[0] == (4.5, 0.5) and {value for _, value in points} == {0.5}
    assert thin({1: 0.25, 5: 0.5}) == [(1, 0.25), (5, 0.5)]


def test_groups_are_runs_that_differ_in_the_seed_alone() -> None:
    """A finished run is taken before one with the same seed that is not."""
    runs = [made_up(1, {}), made_up(0, {}, finished=False), made_up(0, {}), made_up(0, {}, steps=5)]
    groups, notes = group_runs(runs)
    assert [[run.experiment.seed for run in group.runs] for group in groups] == [[0, 1], [0]]
    assert groups[0].runs[0] is runs[2] and len(notes) == 1
    assert [group.label for group in groups] == ["tiny (steps 4)", "tiny (steps 5)"]
    runs = [made_up(0, {}, rewind=1, pass_over=(3,)), made_up(1, {}, rewind=1), made_up(1, {}, pass_over=(3,))]
    assert [len(group.runs) for group in group_runs(runs)[0]] == [2, 1]  # one went back, and one was told to
    assert [group.label for group in group_runs(runs)[0]] == ["tiny (rewind 1)", "tiny (rewind None)"]


def test_options_of_other_components_differ_where_they_are_set() -> None:
    with_dropout = TINY.model.replace(dropout=0.2)
    groups = [Group((made_up(0, {}, model=with_dropout),)), Group((made_up(0, {}, model=use(hostile_model)),))]
    assert differences(groups) == [
        {"model": "vit-tiny", **{f"model.{name}": value for name, value in with_dropout.options.items()}},
        {"model": f"{__name__}:hostile_model"},
    ]


def hostile_model(num_classes: int, bias: bool = True) -> torch.nn.Module:
    """Its option has its default."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(num_classes, bias=bias))


def test_the_files_of_two_groups_have_different_names() -> None:
    groups = [Group((made_up(0, {}),), label=label) for label in ("a (b)", "a [b]", 200 * "x", 200 * "x" + "y")]
    assert _file_names(groups) == ["a-b", "a-b-1", 100 * "x", 100 * "x" + "-3"]
    (name,) = _file_names([Group((made_up(0, {}),), label=200 * "猫")])
    assert len(name.encode()) <= 100 and {*name} == {"猫"}
    groups = [Group((made_up(0, {}),), label=label) for label in ("a-b-2", "a b", "a-b")]
    assert len({*_file_names(groups)}) == 3


def test_the_command_of_a_run() -> None:
    def command(text: str) -> str:
        return dataclasses.replace(made_up(0, {}), starts=[{"command": text}]).command

    assert command("train.py a --seed 1") == "python train.py a --seed 1"
    assert command("/lib/backbones/__main__.py train 'm y:e'") == "python -m backbones train 'm y:e'"
    assert command("/bin/backbones train a") == "/bin/backbones train a" and command("") == ""


@pytest.mark.slow
def test_as_a_command(folder: Path, tmp_path: Path) -> None:
    command = ["-m", "backbones", "report", *(folder / name for name in "abcd")]
    done = run_process([*command, "--no-images"], cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout == "see report.html, and the same as pictures in report-png\n"
    assert "tiny" in text_of(parse(tmp_path / "report.html")) and (tmp_path / "report-png" / "overview.png").exists()


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def browse(page: Path, *options: str) -> str:
    """What headless Chromium prints about a file that it opens without a network."""
    home = [f"--user-data-dir={page.parent / 'profile'}", "--proxy-server=127.0.0.1:9"]
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        *home,
        *options,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, timeout=120, check=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_opens_it_from_a_file(width: int, out: Path, tmp_path: Path) -> None:
    """On a phone too, where nothing is wider than the screen; light and dark."""
    page = Path(shutil.copy(out, tmp_path / "report.html"))
    lightness = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        scheme_option = f"--blink-settings=preferredColorScheme={number}"
        browse(page, scheme_option, f"--window-size={width},1600", f"--screenshot={tmp_path / scheme}.png")
        with Image.open(tmp_path / f"{scheme}.png") as shown:
            assert shown.size == (width, 1600) and len(shown.convert("RGB").getcolors(2**20)) > 50
            lightness[scheme] = shown.convert("L").getpixel((2, 2))
    assert lightness["dark"] < 50 and lightness["light"] > 200
    frame = tmp_path / "frame.html"
    write_width = "document.body.innerText = frame.contentDocument.documentElement.scrollWidth"
    frame.write_text(
        f"<iframe id=frame width={width} style='border:0' src={page.name} onload='{write_width}'></iframe>"
    )
    assert f"<body>{width}</body>" in browse(frame, "--allow-file-access-from-files", "--dump-dom")
