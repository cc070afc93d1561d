"""From the folders of runs to a page and pictures."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from backbones.component import Use
from backbones.data import Dataset
from backbones.errors import InputError, first_line
from backbones.experiment import make_dataset
from backbones.run.analysis.model_evaluation import plot_calibration, plot_confusion
from backbones.run.analysis.pictures import draw_tiles, in_rows
from backbones.run.files import atomic_write
from backbones.run.report.examine import Examined, examine
from backbones.run.report.groups import Group, group_runs
from backbones.run.report.overview import draw_overview
from backbones.run.report.page import GENERATOR, write_page
from backbones.run.report.runs import read_runs
from backbones.types import CPU


class Report(NamedTuple):
    """What is in a report."""

    groups: list[Group]
    """The experiments, the best first."""
    notes: list[str]
    """A line on each run or part that is left out."""
    png: Path
    """The folder of the PNG files."""


def make_report(
    run_dirs: Sequence[Path],
    out: Path,
    *,
    png: Path | None = None,
    title: str = "Training report",
    images: bool = True,
    device: torch.device = CPU,
    data_root: str | None = None,
) -> Report:
    """Write a report of runs, of which some may still go on.

    Args:
        run_dirs: folders of runs.
        out: the page; a report that is there is replaced.
        png: folder for the same as PNG files; None for `report-png` beside a page `report.html`. Files of the same
            names are replaced.
        title: of the page.
        images: whether the models are evaluated, for what needs their predictions.
        device: where to evaluate.
        data_root: where the data set is; None for where it was when a run was trained.

    Raises:
        InputError: a folder holds no run, no run can be read, or `out` is something else than a report.
    """
    _check_free(out)
    runs, notes = read_runs(run_dirs)
    groups, repeated = group_runs(runs)
    notes += repeated
    folder = png or out.with_name(f"{out.stem}-png")
    for each in (folder, out.parent):
        each.mkdir(parents=True, exist_ok=True)
    examined: Sequence[Examined | str | None] = _examine(groups, device, data_root) if images else [None] * len(groups)
    page = write_page(groups, examined, title=title, notes=notes)
    draw_overview(groups, folder / "overview.png", title=title)
    for group, stem, found in zip(groups, _file_names(groups), examined, strict=True):
        if isinstance(found, Examined):
            _draw(found, group, folder / stem)
    atomic_write(out, page.encode("utf-8", "backslashreplace").decode())  # names of folders may be of another encoding
    return Report(groups, [*notes, *(found for found in examined if isinstance(found, str))], folder)


def _check_free(out: Path) -> None:
    """Raise InputError if there is something at a path that is not a report."""
    if out.is_dir():
        raise InputError(f"{out} is a folder; name a file for the report, as --out {out / 'report.html'}")
    if out.exists() and not (out.is_file() and GENERATOR.encode() in out.read_bytes()[:1000]):
        raise InputError(f"{out} is there already, and no report; delete it, or name another --out")


def _examine(groups: Sequence[Group], device: torch.device, data_root: str | None) -> list[Examined | str]:
    """For each group what is known of its first seed, or why nothing is."""

    @cache
    def read(data: Use) -> Dataset:
        return make_dataset(data, CPU, data_root)

    found: list[Examined | str] = []
    for group in groups:
        try:
            found.append(examine(group.counted[0], read, device))
        except Exception as error:  # also of a module of the user's own
            found.append(f"The predictions of {group.label} are left out: {first_line(error)}")
    return found


def _file_names(groups: Sequence[Group]) -> list[str]:
    """A name for the files of each group, from its label; no two are equal."""
    names: list[str] = []
    for i, group in enumerate(groups):
        name = re.sub(r"[^\w.+-]+", "-", group.label).encode()[:100].decode(errors="ignore").strip("-")
        while name in names:
            name += f"-{i}"
        names.append(name)
    return names


def _draw(found: Examined, group: Group, stem: Path) -> None:
    """Write `STEM.confusion.png`, `STEM.calibration.png`, `STEM.mistakes.png` and `STEM.augmented.png`."""

    def path(name: str) -> Path:
        return stem.with_name(f"{stem.name}.{name}.png")

    plot_confusion(found.evaluation, found.class_names, path("confusion"))
    plot_calibration(found.evaluation, path("calibration"))
    draw_tiles(found.augmented, path("augmented"), title=f"{group.label}: before and after", first_apart=True)
    if found.mistakes:
        draw_tiles(
            in_rows(found.mistakes),
            path("mistakes"),
            title=f"{group.label}: the highest probabilities on a wrong class",
        )
