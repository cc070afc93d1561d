"""Exported models: their speed, and what they compute beside the checkpoint: `python -m benchmarks.export --help`."""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from tqdm import tqdm
from tyro.conf import Positional

import backbones.random as random
from backbones.augment import make_normalize
from backbones.commands.exit import run_command
from backbones.component import use
from backbones.data import DataInfo
from backbones.errors import InputError
from backbones.models import MODELS
from backbones.run.analysis.trained_model import TrainedModel, read_trained
from backbones.run.export.export import export, read_test_images
from backbones.run.export.formats import FORMATS, Content
from backbones.types import CPU
from benchmarks import medians

TABLE = ("resnet18", "mobilenet", "vit-tiny", "convnext-atto")
BATCH_SIZES = (1, 32)
INFO = DataInfo((3, 32, 32), tuple("0123456789"), (125.3, 122.9, 113.9), (63.0, 62.1, 66.7))
PROGRAMS = [(format, fold) for format, how in FORMATS.items() if how.kind == "program" for fold in (False, True)]


def title(format: str, fold: bool) -> str:
    """As the tables have it."""
    return f"{format} --fold" if fold else format


def speed(*, models: tuple[str, ...] = TABLE, rounds: int = 30) -> None:
    """Milliseconds for a batch of 1 and of 32 images of 3x32x32 uint8, medians; each runtime has its usual threads.

    Args:
        models: names of models of this library, initialised at random.
        rounds: batches, of all formats in turn.
    """
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| model | program | " + " | ".join(f"batch {size}, ms" for size in BATCH_SIZES) + " |")
    print("|---|---" + "|--:" * len(BATCH_SIZES) + "|")
    for name in models:
        with tempfile.TemporaryDirectory() as folder:
            programs = load_programs(name, Path(folder))
            times: dict[str, list[float]] = {}
            for size in BATCH_SIZES:
                images = np.random.default_rng(0).integers(0, 256, (size, *INFO.image_shape), dtype=np.uint8)
                timed = {label: partial(seconds, run, images) for label, run in programs.items()}
                for label, each in medians(timed, rounds).items():
                    times.setdefault(label, []).append(1e3 * each)
        for label, row in times.items():
            print(f"| {name} | {label} | " + " | ".join(f"{each:.1f}" for each in row) + " |", flush=True)


Run = Callable[[np.ndarray], Any]


def seconds(run: Run, images: np.ndarray) -> float:
    """How long a batch takes, after a pause, in which the last runtime's threads stop spinning, and another batch."""
    time.sleep(0.1)
    run(images)
    start = time.perf_counter()
    run(images)
    return time.perf_counter() - start


def load_programs(name: str, folder: Path) -> dict[str, Run]:
    """A model as it is evaluated here, and as each exported program, read by the lines that are shown to users."""
    component = use(MODELS[name])
    model = component.make(image_shape=INFO.image_shape, num_classes=INFO.num_classes)
    params, model_state = model.init(random.generator(0))
    trained = TrainedModel(model, params, model_state, make_normalize(INFO.mean, INFO.std, CPU), INFO, CPU)

    @torch.no_grad()
    def checkpoint(images: np.ndarray) -> torch.Tensor:
        return trained.logits(torch.from_numpy(images))

    programs: dict[str, Run] = {"the checkpoint": checkpoint}
    has_norm = any(isinstance(each, torch.nn.BatchNorm2d) for each in model.skeleton.modules())
    chosen = [each for each in PROGRAMS if has_norm or not each[1]]
    for format, fold in tqdm(chosen, desc=f"export {name}", leave=False, disable=None):
        path = folder / f"{fold}-{FORMATS[format].file_name}"
        lines = FORMATS[format].write(path, Content(component, trained, {}, fold))
        names: dict[str, Any] = {"path": str(path)}
        exec(f"{lines.imports}\n{lines.load}", names)
        programs[title(format, fold)] = eval(f"lambda images: {lines.result}", names)
    return programs


def check(
    runs: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...")], /, *, images: int = 1000
) -> None:
    """Export the latest checkpoint of runs in every format, and compare with it on held-out images of their data.

    Args:
        runs: run folders.
        images: how many; all if there are fewer.
    """
    print("| run | format | images | largest difference of a logit | of the same class |\n|---|---|--:|--:|--:|")
    for run in runs:
        content, experiment = read_trained(run)
        read_images = partial(read_test_images, experiment, content.manifest.info, images)
        for format, fold in [*((name, False) for name in FORMATS), *(each for each in PROGRAMS if each[1])]:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder, FORMATS[format].file_name)
                try:
                    done = export(content, experiment, read_images, out, format=format, fold=fold)
                    shown = f"{done.num_images:,} | {done.difference:.1e} | {done.num_equal:,}"
                    shown = shown if done.num_images else "every tensor is equal | |"
                except InputError as error:
                    shown = f"{str(error).partition(';')[0]} | |"
            print(f"| {run.name} | {title(format, fold)} | {shown} |", flush=True)


def main(args: list[str]) -> None:
    """Run a command line."""
    tyro.extras.subcommand_cli_from_dict(
        {"speed": speed, "check": check}, prog="python -m benchmarks.export", description=__doc__, args=args
    )


if __name__ == "__main__":
    run_command(main)
