"""The layers of the code: imports go down only, and each outside library is imported by one module."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT, TOPS = Path(__file__).parent.parent, ("backbones", "experiments", "benchmarks")

LAYERS = [
    [{"train", "experiments", "benchmarks"}],
    [{"backbones.commands", "backbones.__main__"}],
    [{"backbones.run"}],
    [{"backbones.vmapped_step", "backbones.compose", "backbones.experiment", "backbones.component",
      "backbones.train_step", "backbones.evaluation", "backbones.jit"}],
    [{"backbones.models"}, {"backbones.optim"},
     {"backbones.augment", "backbones.losses", "backbones.metrics", "backbones.tta"}, {"backbones.data"}],
    [{"backbones.distributed", "backbones.gradient", "backbones.machine", "backbones.torch_settings"}],
    [{"backbones.types", "backbones.tree", "backbones.random", "backbones.errors", "backbones.ranges"}],
]  # fmt: skip
"""From the top, each a list of columns, which do not see each other."""
IMPORTERS = {
    "optree": "backbones.tree",
    "torchvision.datasets": "backbones.data.torchvision",
    "torchvision.models": "backbones.models.torchvision",
    "timm": "backbones.models.timm",
    "PIL": "backbones.data.image_files.images",
    "torchcodec": "backbones.data.image_files.images",
    "pyarrow": "backbones.data.parquet",
    "orbax": "backbones.run.checkpoint.orbax_state",
    "fvcore": "backbones.models.cost",
    "tensorboard": "backbones.run.metric_writer",
    "jinja2": "backbones.run.report.page",
    "wandb": "backbones.run.trackers",
    "trackio": "backbones.run.trackers",
    "mlflow": "backbones.run.trackers",
}


@cache
def modules() -> dict[str, list[str]]:
    """Module -> all that it imports, wherever it does so, as `package.module.name`."""
    found = {}
    for path in [ROOT / "train.py", *(path for top in TOPS for path in (ROOT / top).glob("**/*.py"))]:
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
        names = [f"{getattr(node, 'module', '')}.{alias.name}".lstrip(".") for node in nodes for alias in node.names]
        found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = names
    return found


def place(name: str) -> tuple[int, int] | None:
    """The layer of a module, counted from the top, and its column."""
    parts = {name, *(name[:i] for i, char in enumerate(name) if char == ".")}
    return next(((i, j) for i, layer in enumerate(LAYERS) for j, column in enumerate(layer) if column & parts), None)


@pytest.mark.parametrize("name", [name for name in modules() if name != "backbones"])
def test_imports_go_down(name: str) -> None:
    for imported in modules()[name]:
        there = place(imported)
        assert there is None or there == place(name) or there[0] > place(name)[0], f"{name} imports {imported}"


@pytest.mark.parametrize(("library", "importer"), IMPORTERS.items())
def test_each_library_has_one_importer(library: str, importer: str) -> None:
    found = {name for name, names in modules().items() if any(f"{each}.".startswith(f"{library}.") for each in names)}
    assert {name for name in found if not name.startswith("benchmarks")} == {importer}  # which compare them with ours


@pytest.mark.slow
def test_the_compiler_is_imported_only_where_something_is_compiled(tmp_path: Path) -> None:
    """It takes a second, in each process."""
    code = "import sys, train; train.main(sys.argv[1:], train.EXPERIMENTS); print('torch._dynamo' in sys.modules)"
    args = f"digits-resnet18 --model airbench --steps 1 --batch-size 8 --device cpu --run-dir {tmp_path}/run".split()
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr
