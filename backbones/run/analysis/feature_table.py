"""Features of a data set as a file: a row for each image, in parquet or as numpy arrays.

N images, D dimensions of a vector.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backbones.data.image_files.cache import UNREADABLE
from backbones.data.parquet import import_pyarrow
from backbones.errors import InputError
from backbones.run.files import atomic_path

SUFFIXES = (".parquet", ".npz")


class FeatureTable(NamedTuple):
    """Features of the images of both splits, the training images first."""

    about: dict[str, str]
    """What they are features of: `checkpoint`, `weights` (a hash), `data`, `layer`, and hashes of `train`, `test`."""
    split: np.ndarray
    """[N] strings, `train` or `test`."""
    index: np.ndarray  # type: ignore[assignment]  # tuple.index is not needed
    """[N] int64, of the image in its split."""
    file_name: np.ndarray
    """[N] strings, empty where images are not files."""
    label: np.ndarray
    """[N] int64."""
    class_name: np.ndarray
    """[N] strings, of the label."""
    predicted_class: np.ndarray
    """[N] strings, a class of the model."""
    probability: np.ndarray
    """[N] float32, of the predicted class."""
    features: np.ndarray
    """[N, D] float32."""

    def take(self, rows: np.ndarray) -> "FeatureTable":
        """Some of the rows, by number or by a mask."""
        return FeatureTable(self.about, *(column[rows] for column in self[1:]))

    def of_split(self, split: str) -> "FeatureTable":
        """The rows of one split."""
        return self.take(self.split == split)


def check_new(path: Path) -> None:
    """Check that a table can be written: before it is computed.

    Raises:
        InputError: the file exists, its folder does not, or the format is not known or needs another package.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"--out {path} is neither .parquet nor .npz; choose one of these suffixes")
    if path.suffix == ".parquet":
        import_pyarrow(f"--out {path} (unlike .npz)")
    for each in (path, path.with_suffix(".json")):
        if each.exists():
            raise InputError(f"{each} exists already; choose another --out")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}; make it, or choose another --out")


def write_table(path: Path, table: FeatureTable) -> None:
    """Write a new table, completely or not at all; the suffix is the format."""
    columns = table._asdict()
    about = json.dumps(columns.pop("about"))
    with atomic_path(path, new=True) as temporary:
        if path.suffix == ".parquet":
            _write_columns(temporary, columns, about)
        else:
            np.savez(temporary, **columns, about=np.array(about))


def read_table(path: Path) -> FeatureTable:
    """What `write_table` wrote.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}; `backbones features RUN --out {path}` writes one")
    try:
        if path.suffix == ".parquet":
            columns, about = _read_columns(path)
        else:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                columns = dict(arrays)
            about = str(columns.pop("about"))
        return FeatureTable(json.loads(about), **columns)
    except InputError:
        raise
    except (*UNREADABLE, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a table of features: {error}; `backbones features` writes them") from error


def _write_columns(path: Path, columns: dict[str, np.ndarray], about: str) -> None:
    """Write columns of numbers or strings [N], or of vectors [N, D], and a text about them.

    Raises:
        InputError: pyarrow is not installed.
    """
    pyarrow = import_pyarrow(str(path))

    def to_arrow(column: np.ndarray) -> Any:
        if column.ndim == 1:
            return pyarrow.array(column)
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(column.reshape(-1)), column.shape[1])

    table = pyarrow.table({name: to_arrow(column) for name, column in columns.items()})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"about": about}), path)


def _read_columns(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """What `_write_columns` wrote; the text is empty if there is none.

    Raises:
        InputError: it cannot be read as parquet, or pyarrow is not installed.
    """
    pyarrow = import_pyarrow(str(path))

    def to_numpy(column: Any) -> np.ndarray:
        column = column.combine_chunks()
        if pyarrow.types.is_fixed_size_list(column.type):
            return column.flatten().to_numpy().reshape(len(column), -1)
        return np.array(column.to_pylist()) if pyarrow.types.is_string(column.type) else column.to_numpy()

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} cannot be read as parquet: {error}") from error
    about = (table.schema.metadata or {}).get(b"about", b"").decode()
    return {name: to_numpy(column) for name, column in zip(table.column_names, table.columns, strict=True)}, about
