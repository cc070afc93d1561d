"""Small data sets of image files, made anew: a folder, and the same images in a tar, a table and parquet."""

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

CLASSES = ("cat", "dog.b", "Éclair 2.0")


def encoded(image: np.ndarray, format: str = "PNG", **options: object) -> bytes:
    """An image [H, W] or [H, W, C] uint8 as the bytes of a file."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, format, **options)
    return content.getvalue()


def random_image(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
    """[H, W, 3] uint8, of one color and some noise, so that JPEG and scaling change little."""
    generator = np.random.default_rng(seed)
    noise = generator.integers(-20, 20, (height, width, 3))
    return np.clip(generator.integers(20, 235, 3) + noise, 0, 255).astype(np.uint8)


def write_folder(root: Path, *, num_train: int = 8, num_test: int = 4, size: tuple[int, int] = (16, 16)) -> Path:
    """`root/train/CLASS/*` and `root/test/CLASS/*`, JPEG and PNG, with names of every kind."""
    seed = 0
    for split, number in (("train", num_train), ("test", num_test)):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                seed += 1
                format, suffix = (("PNG", ".png"), ("JPEG", ".JPG"))[i % 2]
                (folder / f"photo {i}.été{suffix}").write_bytes(encoded(random_image(seed, *size), format))
    return root


def in_order(folder: Path) -> list[Path]:
    """The image files of `write_folder`, in the order of training."""
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.parts)


def write_tar(folder: Path, path: Path, top: str = "") -> Path:
    """The same tree in a tar, below a folder `top`."""
    with tarfile.open(path, "w") as tar:
        for name in ("train", "test"):
            tar.add(folder / name, f"{top}{name}")
    return path


def write_table(folder: Path, path: Path) -> Path:
    """The same images as one table."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for each in in_order(folder):
            rows.writerow([each, each.parent.name, each.parent.parent.name])
    return path


def write_parquet(folder: Path, root: Path, *, test_classes: Sequence[str] = CLASSES) -> Path:
    """The same images as the Hugging Face hub has them; `test_classes` is what the test split calls its classes."""
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    (root / "data").mkdir(parents=True)
    for split, names in (("train", CLASSES), ("test", test_classes)):
        about = {"info": {"features": {"label": {"names": names}}}}
        schema = pyarrow.schema([("img", image), ("label", pyarrow.int64())], {"huggingface": json.dumps(about)})
        paths = in_order(folder / split)
        columns = {
            "img": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
            "label": [CLASSES.index(path.parent.name) for path in paths],
        }
        table = pyarrow.table(columns, schema=schema)
        pyarrow.parquet.write_table(table, root / "data" / f"{split}-00000-of-00001.parquet", row_group_size=5)
    return root
