"""Image files that a table names."""

import csv
import os
from functools import partial
from pathlib import Path

import numpy as np

from backbones.data.image_files import image_files
from backbones.data.image_files.listing import (
    TEST_NAMES,
    Files,
    Listing,
    Names,
    choose_splits,
    class_name,
    number_classes,
)
from backbones.errors import InputError

COLUMNS = "path, label and, if it holds both splits, split (train or test)"


def list_table(root: Path) -> Listing:
    """The image files in a CSV file, or in `train.csv` and `test.csv` of a folder, with paths relative to it.

    Its first line names the columns: `path`, `label`, and maybe `split`. Labels are names of classes.

    Raises:
        InputError: there is no such table, a line cannot be read, or an image is in both splits or has two labels.
    """
    tables = {"": root}
    if root.is_dir():
        names = [name for name in TEST_NAMES if (root / f"{name}.csv").exists()]
        tables = {split: root / f"{name}.csv" for name, split in choose_splits(root, names).items()}
    found: dict[str, list[tuple[str, str]]] = {}
    for table_split, table in tables.items():
        for split, path, label in _read_table(table):
            if table_split and split != "all" and (split in TEST_NAMES) != (table_split == "test"):
                raise InputError(
                    f"{table} has a line of the split {split}, {path}; leave that column out, or name the table itself "
                    f"instead of its folder: --data.root {table}"
                )
            found.setdefault(table_split or split, []).append((path, label))
    chosen = {**choose_splits(root, found), "all": "all"}
    rows = {chosen[split]: lines for split, lines in found.items() if split in chosen}
    trained = {label for _, label in rows.get("train", rows.get("all", []))}
    is_numeric = all(label.isdecimal() for label in trained)
    class_names = sorted(trained, key=lambda label: (int(label) if is_numeric else 0, label))
    number = number_classes(root, class_names, {label for _, label in rows.get("test", [])})
    folder = root if root.is_dir() else root.parent
    _check_repeats(root, folder, rows)
    splits = {
        split: Files(
            Names(path for path, _ in lines),
            np.array([number[label] for _, label in lines], dtype=np.int64),
            str(folder),
        )
        for split, lines in rows.items()
    }
    return Listing(tuple(number), splits)


def _check_repeats(root: Path, folder: Path, rows: dict[str, list[tuple[str, str]]]) -> None:
    """Raise InputError if an image is in both splits, or has two labels; to repeat it otherwise is oversampling."""
    found: dict[str, tuple[str, str]] = {}
    for split, lines in rows.items():
        for path, label in lines:
            before = found.setdefault(os.path.normpath(os.path.join(folder, path)), (split, label))
            if before != (split, label):
                raise InputError(
                    f"{root} has the image {path} as {before[1]} in {before[0]} and as {label} in {split}; wanted one "
                    "label and one split for each image"
                )


def _read_table(table: Path) -> list[tuple[str, str, str]]:
    """Split (`all` where there is no such column), path and label of each line."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file, skipinitialspace=True)
            missing = {"path", "label"} - set(lines.fieldnames or ())
            if missing:
                got = ", ".join(lines.fieldnames or ["nothing"])
                raise InputError(
                    f"{table} has no column {' and '.join(sorted(missing))} in its first line ({got}); wanted {COLUMNS}"
                )
            found, splits = [], ("train", *TEST_NAMES) if "split" in (lines.fieldnames or ()) else ("all",)
            for line in lines:
                split, path, label = line.get("split", "all"), line["path"], class_name((line["label"] or "").strip())
                if not path or not label or split not in splits or None in line:
                    raise InputError(f"{table}, line {lines.line_num}: wanted {COLUMNS}, got {line}")
                found.append((split, path, label))
            return found
    except OSError as error:
        raise InputError(
            f"{table} cannot be read: {error.strerror}; set --data.root to a CSV file, or to a folder with train.csv "
            "and test.csv"
        ) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{table} is not a CSV file in UTF-8: {error}") from error


image_list = partial(image_files, list_table)
