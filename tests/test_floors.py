"""The house has floors: imports go down only, and each outside library has one door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = [
    {"experiments.own_transform"},
    {"train"},
    {"experiments"},
    {"backbones.evaluate"},
    {"backbones.loop"},
    {"backbones.interrupt"},
    {"backbones.checkpoint", "backbones.metric_writer", "backbones.overhead"},
    {"backbones.train_step"},
    {"backbones.datasets"},
    {"backbones.models", "backbones.optim", "backbones.losses", "backbones.metrics", "backbones.data"},
    {"backbones.augment"},
    {"backbones.distributed"},
    {"backbones.donate"},
    {"backbones.tree", "backbones.random", "backbones.command_line"},
    {"backbones.types", "backbones.errors", "backbones.files"},
]
ONLY_IMPORTERS = {
    "optree": "backbones.tree",
    "torchvision": "backbones.datasets",
    "orbax": "backbones.checkpoint.folder",
    "fvcore": "backbones.overhead",
    "tensorboard": "backbones.metric_writer",
}


def modules() -> list[Path]:
    return [ROOT / "train.py", *sorted(ROOT.glob("backbones/**/*.py")), *sorted(ROOT.glob("experiments/*.py"))]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> list[str]:
    """All modules that a file imports, wherever it does so, as `package.module.name`."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def floor_and_room(name: str) -> tuple[int, str] | None:
    found = [
        (height, room)
        for height, rooms in enumerate(reversed(FLOORS))
        for room in rooms
        if name == room or name.startswith(room + ".")
    ]
    return max(found, key=lambda each: len(each[1]), default=None)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_go_down(path: Path) -> None:
    if name_of(path) == "backbones":
        return
    floor, room = floor_and_room(name_of(path))
    for imported in imports_of(path):
        below = floor_and_room(imported)
        assert below is None or below[1] == room or below[0] < floor, f"{name_of(path)} imports {imported}"


@pytest.mark.parametrize(("library", "door"), ONLY_IMPORTERS.items())
def test_each_library_has_one_door(library: str, door: str) -> None:
    importers = {name_of(path) for path in modules() for name in imports_of(path) if library in name.split(".")}
    assert importers == {door}
