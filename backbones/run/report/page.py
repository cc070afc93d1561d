"""Groups of runs as one page of HTML: no script, and nothing that has to be loaded. The only importer of jinja2."""

import base64
import io
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

import backbones.run.report.text as text
from backbones.metrics import Calibration
from backbones.run.analysis.model_evaluation import MOST_COUNTED, ClassRow, class_rows
from backbones.run.analysis.pictures import to_rgb
from backbones.run.report.curves import BOTTOM, COLORS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, make_panel
from backbones.run.report.examine import Examined
from backbones.run.report.groups import Group, differences

GENERATOR = '<meta name="generator" content="backbones report" />'
"""Near the head of each page: a file without it is no report, and is not replaced."""

MOST_PIXELS = 128
"""Longest side of an image in the page; larger ones are scaled down."""


def write_page(
    groups: Sequence[Group], examined: Sequence[Examined | str | None], *, title: str, notes: Sequence[str]
) -> str:
    """The page.

    Args:
        groups: in their order on the page.
        examined: for each group what its model does with the images, or why that is not known; None if not asked.
        title: of the page.
        notes: lines on what is left out.
    """
    environment = Environment(
        loader=PackageLoader("backbones.run.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions = (picture, confusion_picture, worst_first, bins)
    environment.globals |= {"text": text, **{function.__name__: function for function in functions}}
    panels = [
        make_panel("Top-1 accuracy on held-out images, %", groups, "test", "top1", scale=100),
        make_panel("Loss on held-out images", groups, "test", "loss"),
        make_panel("Loss in training", groups, "train", "loss"),
    ]
    different = differences(groups)
    return environment.get_template("page.html.j2").render(
        generator=GENERATOR,
        title=title,
        made=datetime.now(UTC),
        notes=notes,
        groups=groups,
        examined=examined,
        panels=[panel for panel in panels if panel is not None],
        size={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        colors=COLORS,
        different=different,
        options=list(dict.fromkeys(option for each in different for option in each)),
        most_classes=MOST_COUNTED,
    )


def worst_first(found: Examined) -> list[ClassRow]:
    """The scores of each class, the worst accuracy first."""
    rows = class_rows(found.evaluation, found.class_names)
    return sorted(rows, key=lambda row: math.inf if row.recall is None else row.recall)


class Bin(NamedTuple):
    """Predictions of about one confidence."""

    start: float
    width: float
    """From which confidence on, and how far, in [0, 1]."""
    accuracy: float
    size: int
    """How many predictions."""


def bins(calibration: Calibration) -> list[Bin]:
    """The bins that are not empty."""
    width = 1 / len(calibration.counts)
    pairs = enumerate(zip(calibration.accuracy.tolist(), calibration.counts.tolist(), strict=True))
    return [Bin(i * width, width, accuracy, size) for i, (accuracy, size) in pairs if size]


def picture(image: Tensor) -> str:
    """An image [C, H, W], uint8 or floating in [0, 255], as the address of a PNG that holds itself."""
    height, width = image.shape[-2:]
    if max(height, width) > MOST_PIXELS:
        scale = MOST_PIXELS / max(height, width)
        size = max(1, round(scale * height)), max(1, round(scale * width))
        image = F.interpolate(image[None].to(torch.float32), size, mode="area")[0]
    return _png(to_rgb(image))


def confusion_picture(confusion: Tensor) -> str:
    """A confusion matrix [K, K], one pixel a cell: blue where it is right and red where not, as opaque as its share."""
    shares = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    right = torch.eye(len(shares), dtype=torch.bool)[:, :, None]
    colors = torch.where(right, torch.tensor([37, 99, 201]), torch.tensor([209, 60, 40]))
    alpha = torch.where(right[:, :, 0], shares, shares.sqrt())
    return _png(torch.cat([colors, (255 * alpha).round()[:, :, None]], dim=2).to(torch.uint8))


def _png(pixels: Tensor) -> str:
    """Pixels [H, W, 3 or 4] uint8."""
    from matplotlib.image import imsave  # late: it takes half a second to import

    file = io.BytesIO()
    imsave(file, pixels.numpy(), format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
