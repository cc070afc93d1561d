"""`backbones report RUN ... --out report.html`: runs side by side, as one page of HTML and as PNGs."""

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

import backbones.distributed as distributed
from backbones.commands.options import DataRoot, DeviceName
from backbones.run.report.make_report import make_report
from backbones.torch_settings import in_full_float32


@in_full_float32()
def report(
    runs: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")],
    /,
    *,
    out: Path = Path("report.html"),
    png: Path | None = None,
    title: str = "Training report",
    images: bool = True,
    device: DeviceName = "auto",
    data_root: DataRoot = None,
) -> None:
    """Make a page of runs: table, curves, differences of their options, confusion, worst mistakes, augmented images.

    Runs that differ in nothing but their seed are one line of the table, with mean and standard deviation. Runs that
    are not finished are shown as far as they are. The page holds everything that it shows, and no script.

    Args:
        runs: run folders, as runs/*.
        out: the page to write; a report that exists is replaced, any other file is not.
        png: folder for the same as PNG files; None for OUT-png, as report-png beside report.html.
        title: of the page.
        images: evaluate the last checkpoint of the first seed of each experiment, for confusion, mistakes and scores.
        device: where to evaluate; auto is the GPU where there is one.
        data_root: where the data set is; None for where it was when a run was trained.

    Raises:
        InputError: there is no run, none can be read, or `out` is another file.
    """
    made = make_report(
        runs, out, png=png, title=title, images=images, device=distributed.init(device), data_root=data_root
    )
    for note in made.notes:
        distributed.warn0(note)
    print(f"see {out}, and the same as pictures in {made.png}")
