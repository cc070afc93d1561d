"""Parquet files with a column of encoded images and one of labels, as the Hugging Face hub has them.

Only here is pyarrow imported.
"""

import json
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import backbones.distributed as distributed
from backbones.data.image_files import image_files
from backbones.data.image_files.cache import Stamps, cache_path, replacing, stamp, with_filename
from backbones.data.image_files.listing import (
    LIKE_SPLITS,
    TEST_NAMES,
    Files,
    Listing,
    Names,
    choose_splits,
    number_classes,
)
from backbones.data.image_files.listing_cache import cached_listing
from backbones.errors import InputError, shorten

LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
"""Of several columns of labels the first one is taken."""


def import_pyarrow(what: str) -> Any:
    """pyarrow, with its parquet module, which is an extra; `what` needs it.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{what} needs pyarrow: pip install pyarrow") from error
    return pyarrow


def list_parquet(root: Path) -> Listing:
    """The images in a parquet file, or in all parquet files below a folder.

    A file belongs to the split that its name begins with, such as `data/train-00000-of-00001.parquet`, or that a folder
    it is in is named after. No image in it can be read alone: all are copied once, encoded as they are, into one file
    beside the listing (see `cache.py`).

    Raises:
        InputError: there are no such files, a split has another name, pyarrow is not installed, or the columns are not
            as they should be.
    """
    paths = sorted(_files_below(root)) if root.is_dir() else [root]
    if not paths or not root.exists():
        raise InputError(f"there are no parquet files in {root}; set --data.root to a file, or to a folder of them")
    return cached_listing(root, "parquet", lambda: _extract(root, paths), paths)


def _files_below(root: Path) -> Iterator[Path]:
    """The parquet files below a folder, also behind links to folders, but for hidden ones."""

    def fail(error: OSError) -> None:
        raise error

    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=fail):
        real = os.path.realpath(folder)
        shown = [name for name in folders if not name.startswith(".")]
        # links last, so that a file has the name that it has without them
        folders[:] = [] if real in seen else sorted(shown, key=lambda name: (Path(folder, name).is_symlink(), name))
        if real not in seen:
            yield from (Path(folder, name) for name in names if re.fullmatch(r"[^.].*\.parquet", name))
        seen.add(real)


def _extract(root: Path, paths: list[Path]) -> tuple[Listing, Stamps]:
    pyarrow = import_pyarrow("--data parquet")
    stamps = {str(path.resolve()): stamp(path) for path in paths}
    store = cache_path(root, "images", "bin")
    rows: dict[str, list[tuple[str, Any, int, int]]] = {}  # name, label, and where the bytes are in the store
    named: dict[Path, list[str]] = {}  # file -> names of its classes
    splits = [_split_of(path.relative_to(root) if root.is_dir() else Path(path.name)) for path in paths]
    path = root
    try:
        total, labelled = 0, set()
        for path, split in zip(paths, splits, strict=True):
            with pyarrow.parquet.ParquetFile(path) as file:
                total += file.metadata.num_rows
                if split not in labelled and (split not in TEST_NAMES or _has_labels(path, file)):
                    labelled.add(split)
        if unlabelled := {*splits} - labelled:
            distributed.print0(f"note: {root} has no labels in {', '.join(sorted(unlabelled))}: not used")
        chosen = {**choose_splits(root, labelled), "all": "all"}
        with (
            with_filename(store),
            replacing(store) as output,
            distributed.progress(desc=f"copying {root}", total=total, unit=" images") as bar,
        ):
            for path, split in zip(paths, splits, strict=True):
                if split not in chosen:
                    continue
                split_rows = rows.setdefault(chosen[split], [])
                with pyarrow.parquet.ParquetFile(path) as file:
                    image_column, label_column = _columns(path, file.schema_arrow)
                    if (names := _class_names(file.schema_arrow, label_column)) is not None:
                        named[path] = names
                    for row, (image, label) in enumerate(_rows(file, image_column, label_column)):
                        content, file_name = image if isinstance(image, tuple) else (image, None)
                        if content is None and file_name is not None:
                            raise InputError(
                                f"{path}, row {row}: there is the path of an image, {file_name}, and not its bytes; "
                                "write the files anew with embedded images, or use --data image-list"
                            )
                        start, length = output.tell(), output.write(content or b"")
                        called = file_name or f"{os.path.relpath(path, root)}, row {row}"
                        split_rows.append((called, label, start, length))
                        bar.update()
            labels = {split: [row[1] for row in each] for split, each in rows.items()}
            # an error here leaves the store as it was
            class_names, numbers = _number(root, labels, _common_class_names(named))
    except (OSError, pyarrow.ArrowException) as error:
        if getattr(error, "errno", None) is not None:  # of the disk
            raise
        raise InputError(f"{path} cannot be read as parquet: {error}") from error
    listing = Listing(class_names, {})
    for split, each in rows.items():
        extents = np.array([row[2:] for row in each], dtype=np.int64).reshape(-1, 2)
        listing.splits[split] = Files(Names(row[0] for row in each), numbers[split], str(root), str(store), extents)
    return listing, stamps


def _split_of(path: Path) -> str:
    for part in reversed(path.parts):
        name = re.split(r"[-._]", part)[0]
        if name in ("train", *TEST_NAMES):
            return name
        if name.casefold() in LIKE_SPLITS:
            raise InputError(f"{path} is named after the split {name}; rename it to train or test")
    return "all"


def _columns(path: Path, schema: Any) -> tuple[str, str]:
    """The names of the columns of images and labels."""
    images = [field.name for field in schema if _is_image(field.type)]
    labels = [field.name for field in schema if _is_label(field.type)]
    label = next((name for name in LABEL_COLUMNS if name in schema.names), labels[0] if len(labels) == 1 else None)
    if len(images) != 1 or label is None or label not in labels:
        got = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise InputError(
            f"{path} has the columns {got}; wanted one of encoded images (binary, or a struct with `bytes`) and one "
            f"of labels (integers or strings), named {' or '.join(LABEL_COLUMNS)} if there are several"
        )
    return images[0], label


def _is_image(kind: Any) -> bool:
    is_struct = str(kind).startswith("struct")
    return str(kind) in ("binary", "large_binary") or (is_struct and kind.get_field_index("bytes") >= 0)


def _is_label(kind: Any) -> bool:
    return re.match(r"u?int|(large_)?string$|dictionary<values=(large_)?string,", str(kind)) is not None


def _has_labels(path: Path, file: Any) -> bool:
    """Whether there is a label in a file: the hub's test splits have -1 where the labels are not public."""
    _, column = _columns(path, file.schema_arrow)
    return any(label not in (None, -1) for label in file.read([column])[column].unique().to_pylist())


def _class_names(schema: Any, label_column: str) -> list[str] | None:
    """Names of the classes, where the hub's own description of the columns has them."""
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return about.get("info", {}).get("features", {}).get(label_column, {}).get("names")


def _common_class_names(named: dict[Path, list[str]]) -> list[str] | None:
    """The names of the classes, which all files that have any must agree on; None if none has."""
    if not named:
        return None
    first, names = next(iter(named.items()))
    for path, theirs in named.items():
        if theirs != names:
            raise InputError(
                f"the classes are {shorten(names)} in {first}, and {shorten(theirs)} in {path}, so that a number means "
                "another class in each; write both with the same names, or labels as strings"
            )
    return names


def _rows(file: Any, image_column: str, label_column: str) -> Iterator[tuple[Any, Any]]:
    """Each image, as bytes or as a tuple of bytes and path, and its label."""
    for batch in file.iter_batches(batch_size=64, columns=[image_column, label_column]):
        for image, label in zip(
            *(batch.column(name).to_pylist() for name in (image_column, label_column)), strict=True
        ):
            yield ((image["bytes"], image.get("path")) if isinstance(image, dict) else image), label


def _number(
    root: Path, labels: dict[str, list[Any]], known: list[str] | None
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The classes, and the labels of each split as their numbers; a label may be a number already."""
    found = {label for each in labels.values() for label in each}
    if not found:
        raise InputError(f"the parquet files in {root} have no rows; wanted one image at least")
    if None in found or len({type(label) for label in found}) > 1:
        raise InputError(f"{root} has rows without a label, or labels of several types")
    if all(isinstance(label, int) for label in found):
        if known is None and max(found) > 10 * sum(map(len, labels.values())):
            raise InputError(f"{root} has labels up to {max(found)}, which are not class numbers; make them strings")
        class_names = tuple(known or map(str, range(max(found) + 1)))
        return class_names, {split: np.array(each, dtype=np.int64) for split, each in labels.items()}
    trained = {*labels.get("train", labels.get("all", ()))}
    number = number_classes(root, sorted(trained), {*labels.get("test", ())})
    return tuple(number), {split: np.array([number[x] for x in each], dtype=np.int64) for split, each in labels.items()}


parquet = partial(image_files, list_parquet)
