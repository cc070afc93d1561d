from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.run.analysis.pictures import Tile, caption, draw_tiles, to_rgb


def test_tiles_of_any_images_with_any_text(tmp_path: Path) -> None:
    """Grey and color, floating pixels, lines of different lengths, and text that is not a formula."""
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey = torch.arange(2000, dtype=torch.float32).reshape(1, 40, 50) % 256
    draw_tiles([[Tile(image, ["$_x$", "b"]), Tile(grey)], [Tile(image)]], tmp_path / "a.png", title="a " * 40)
    with Image.open(tmp_path / "a.png") as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    top = 13 * 4  # three lines of title, and one more
    for i, j, wanted in ((0, 0, to_rgb(image)), (0, 1, to_rgb(grey)), (1, 0, to_rgb(image))):
        corner = (top + i * (80 + 26 + 6), 6 + j * 106)
        drawn = pixels[corner[0] : corner[0] + 80, corner[1] : corner[1] + 100]
        assert torch.equal(drawn[::2, ::2], wanted) and torch.equal(drawn[1::2, 1::2], wanted)


def test_pixels_out_of_range() -> None:
    values = torch.tensor([-3.0, 0.4, 0.6, 254.6, 300.0, torch.inf, -torch.inf, torch.nan])
    assert to_rgb(values.expand(3, 1, 8))[0, :, 0].tolist() == [0, 0, 1, 255, 255, 255, 0, 0]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    rows = [[Tile(torch.zeros(3, 8, 8))]]
    with pytest.raises(OSError, match="No such file"):
        draw_tiles(rows, tmp_path / "nowhere" / "a.png", title="")
    with pytest.raises(ValueError, match="not supported"):
        draw_tiles(rows, tmp_path / "a.nothing", title="")


def test_captions() -> None:
    names = ("cat", "dog", "cow")
    assert caption(torch.tensor([0.0, 1.0, 0.0]), names) == ["dog"]
    assert caption(torch.tensor([0.3, 0.7, 0.0]), names) == ["70% dog", "30% cat"]
    assert caption(torch.tensor([1.0]), names) == ["cat"]
