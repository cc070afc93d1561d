"""Pictures of images as a model sees them: lines of tiles, each with text below it.

C channels, H and W height and width of an image, K classes.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from backbones.errors import InputError

TILE, GAP, LINE, DPI = 96, 6, 13, 100
"""Pixels: side of a drawn image, space between two, a line of text; and pixels per inch."""


class Tile(NamedTuple):
    """An image and what is written below it."""

    image: Tensor
    """[C, H, W], uint8 or floating in [0, 255]."""
    caption: Sequence[str] = ()
    """Lines of text; of one that is wider than the tile the end is shown."""


def draw_tiles(
    rows: Sequence[Sequence[Tile]], path: Path, *, title: str, first_apart: bool = False, side: int = TILE
) -> None:
    """Draw lines of tiles, whose images have one size. Pixels are enlarged by a whole number: none is interpolated.

    Args:
        rows: the tiles of each line.
        path: file to write; its suffix is the format.
        title: stands above all of them.
        first_apart: whether the first tile of each line stands apart from the others.
        side: about how many pixels the longer side of a drawn image has; more where the image itself has more.

    Raises:
        OSError: the file cannot be written.
        ValueError: its suffix is not a format.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    height, width = rows[0][0].image.shape[-2:]
    zoom = max(1, round(side / max(height, width)))
    across = zoom * width + GAP
    down = zoom * height + LINE * max(len(tile.caption) for row in rows for tile in row) + GAP
    columns = [GAP + across * j + (2 * GAP if j and first_apart else 0) for j in range(max(map(len, rows)))]
    letters = across // 6
    header = textwrap.wrap(title, (columns[-1] + across) // 8, break_on_hyphens=False)
    start = LINE * (len(header) + 1)
    size = columns[-1] + across, start + down * len(rows)
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)

    def write(lines: Sequence[str], x: float, y: float, **options: Any) -> None:
        for n, line in enumerate(lines, start=1):
            figure.text(x / size[0], 1 - (y + LINE * n - 3) / size[1], line, parse_math=False, **options)

    write(header, GAP, LINE / 2, fontsize=9)
    for i, row in enumerate(rows):
        top = start + down * i
        for left, tile in zip(columns, row, strict=False):
            pixels = to_rgb(tile.image).repeat_interleave(zoom, dim=0).repeat_interleave(zoom, dim=1)
            figure.figimage(pixels.numpy(), left, size[1] - top - zoom * height)
            middle = left + zoom * width / 2
            lines = [shorten_start(line, letters) for line in tile.caption]
            write(lines, middle, top + zoom * height, ha="center", fontsize=7, color="0.25")
    figure.savefig(path, dpi=DPI)


def in_rows(tiles: Sequence[Tile]) -> list[Sequence[Tile]]:
    """Lines of eight tiles, for `draw_tiles`."""
    return [tiles[i : i + 8] for i in range(0, len(tiles), 8)]


def to_rgb(image: Tensor) -> Tensor:
    """[C, H, W], uint8 or floating in [0, 255] -> [H, W, 3] uint8: the first three channels, or the first in grey.

    What is outside of [0, 255] is drawn as the nearer of the two, and NaN as 0.
    """
    image = image[:1].expand(3, -1, -1) if len(image) < 3 else image[:3]
    if image.is_floating_point():
        image = image.nan_to_num(0.0).round().clamp(0, 255)
    return image.to(torch.uint8).permute(1, 2, 0).cpu()


def caption(target: Tensor, class_names: Sequence[str]) -> list[str]:
    """The class of a target [K], or its two largest with their shares; a line each."""
    shares, classes = target.topk(min(2, len(target)))
    names = [class_names[k] for k in classes.tolist()]
    if len(names) == 1 or shares[1] < 0.005:
        return names[:1]
    return [f"{share:.0%} {name}" for name, share in zip(names, shares.tolist(), strict=True)]


def save_tiles(rows: Sequence[Sequence[Tile]], path: Path, *, title: str, side: int = TILE) -> None:
    """`draw_tiles` for a command: the first tile of each line stands apart.

    Raises:
        InputError: the file cannot be written, or its suffix is not a format.
    """
    try:
        draw_tiles(rows, path, title=title, first_apart=True, side=side)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {error}") from error


def check_picture(path: Path) -> None:
    """Check the name of a picture before it is computed.

    Raises:
        InputError: it has no suffix (matplotlib would add one, and write another file), or it is there and does
            not name matplotlib as its program (a PNG, SVG or PDF would), so that it may be a photo.
    """
    if not path.suffix:
        wanted = path / "picture.png" if path.is_dir() else f"{path}.png"
        raise InputError(f"cannot write {path}: wanted a file name with a suffix, such as {wanted}")
    if path.exists() and not (path.is_file() and b"matplotlib" in path.read_bytes().lower()):
        raise InputError(
            f"{path} already exists and does not look like a plot of matplotlib; delete it or choose another file name"
        )


def shorten_start(text: str, most: int) -> str:
    """The end of a text, if it has more than this many letters."""
    return text if len(text) <= most else f"…{text[1 - most :]}"
