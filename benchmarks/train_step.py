"""Speed and memory of a training step, beside hand-written loops: `python -m benchmarks.train_step --help`."""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor
from tyro.conf import Positional, arg

from backbones.errors import InputError, check_known
from backbones.models import MODELS
from backbones.models.cost import measure_cost
from backbones.types import CPU
from benchmarks import medians, run_script, status
from benchmarks.contenders import CONTENDERS, TIMM, Precision, Setting, make_step

TABLE = (
    "vgg11", "vgg19-bn", "resnet18", "preactresnet18", "resnext29-32x4d", "se-resnet18", "cbam-resnet18", "mobilenet",
    "shufflenet-g8", "vit-tiny",
)  # fmt: skip
"""The ten models of the reference."""


def matmul(precision: Precision, device: str) -> Callable[[], Tensor]:
    """A product of two matrices of 2048 x 2048, or 8192 x 8192 on a GPU."""
    size = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, size, size, dtype=getattr(torch, precision), device=device)
    return lambda: a @ b


def timed(calls: Sequence[Callable[[], Tensor]]) -> float:
    """Seconds a call, until the result of the last one is there: a GPU has a queue of them."""
    start = time.perf_counter()
    for call in calls:
        result = call()  # only the last is kept: memory is used again
    result.flatten()[0].item()
    return (time.perf_counter() - start) / len(calls)


def fastest(call: Callable[[], Tensor]) -> float:
    """The least seconds of five calls."""
    return min(timed([call]) for _ in range(5))


def serve(connection: Connection, contender: str, setting: Setting) -> None:
    """A contender in a process of its own: it answers each number of steps with the seconds a step.

    Its first answer is the seconds of the first step, its last one the peak of its memory, over that before.
    """
    on_gpu = setting.device == "cuda"
    before = 0 if on_gpu else status("VmRSS")
    step = make_step(contender, setting)
    numbers = count()
    connection.send(timed([partial(step, next(numbers))]))
    if not on_gpu:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    while steps := connection.recv():
        connection.send(timed([partial(step, i) for i in islice(numbers, steps)]))
    connection.send(torch.cuda.max_memory_allocated() if on_gpu else status("VmHWM") - before)


@contextmanager
def contestant(contender: str, setting: Setting) -> Iterator[Connection]:
    """The other end of `serve`."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, contender, setting), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        process.kill()
        process.join()


@dataclass
class Row:
    """What was measured of one contender."""

    model: str
    precision: Precision
    contender: str
    images_per_second: float
    over_by_hand: float | None
    """Speed relative to the hand-written loop; for ours, to the hand-written loop in the same compile mode."""
    over_plain: float | None
    peak_mb: float
    """Highest memory of the step and its state."""
    first_step_s: float
    """The first step, which compiles."""
    peak_gflops: float
    """Of a matrix product in the same precision, GFLOP/s: two for each multiply-accumulate."""
    share_of_peak: float
    """Multiply-accumulates a second, three times those of a forward pass, over those of the matrix product."""

    def __str__(self) -> str:
        ratios = " | ".join("" if ratio is None else f"{ratio:.2f}" for ratio in (self.over_by_hand, self.over_plain))
        return (
            f"| {self.model} | {self.precision} | {self.contender} | {self.images_per_second:,.0f} | {ratios} "
            f"| {self.peak_mb:,.0f} | {self.first_step_s:.1f} | {self.peak_gflops:,.0f} | {self.share_of_peak:.0%} |"
        )


HEAD = (
    "| model | precision | contender | images/s | over by hand | over plain | memory, MB | first step, s "
    "| peak, GFLOP/s | of peak |\n|---|---|---|--:|--:|--:|--:|--:|--:|--:|"
)


def measure(setting: Setting, contenders: Sequence[str], steps: int, rounds: int) -> list[Row]:
    """A row for each contender that there is for the model."""
    contenders = [each for each in contenders if each != "timm" or setting.model in TIMM]
    plain = replace(setting, precision="float32", keep_memory=False)
    precision_of = {each: "float32" if each == "plain" else setting.precision for each in contenders}
    multiply = {precision: matmul(precision, setting.device) for precision in precision_of.values()}
    with ExitStack() as stack:
        ends, first = {}, {}
        for each in contenders:  # one after the other: the first step may compile
            ends[each] = stack.enter_context(contestant(each, plain if each == "plain" else setting))
            first[each] = ends[each].recv()

        def turn(end: Connection) -> float:
            end.send(steps)
            return end.recv()

        turns: dict[str, Callable[[], float]] = {each: partial(turn, end) for each, end in ends.items()}
        for precision, product in multiply.items():  # a limit: the fastest
            turns[precision] = partial(fastest, product)
        seconds = medians(turns, rounds, warmup=1)
        peaks = {}
        for each, end in ends.items():
            end.send(0)
            peaks[each] = end.recv()
    experiment = setting.experiment()
    info = experiment.data.make(device=CPU).info
    macs_per_image = measure_cost(experiment.make_model(info), info.image_shape).macs
    assert macs_per_image is not None  # every model here can be traced
    macs = 3 * setting.batch_size * macs_per_image
    peak_macs = {precision: each().shape[0] ** 3 / seconds[precision] for precision, each in multiply.items()}

    def ratio(each: str, other: str) -> float | None:
        return seconds[other] / seconds[each] if other in seconds else None

    return [
        Row(
            setting.model,
            precision_of[each],
            each,
            setting.batch_size / seconds[each],
            ratio(each, each.replace("ours", "by hand") if each.startswith("ours") else "by hand"),
            ratio(each, "plain"),
            peaks[each] / 1e6,
            first[each],
            2e-9 * peak_macs[precision_of[each]],
            macs / seconds[each] / peak_macs[precision_of[each]],
        )
        for each in contenders
    ]


def draw(rows: Sequence[Row], path: Path) -> None:
    """A bar chart of the images a second over those of the plain loop."""
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys((row.model, row.precision) for row in rows if row.contender != "plain"))
    contenders = list(dict.fromkeys(row.contender for row in rows if row.contender != "plain"))
    figure = Figure(figsize=(8, 1 + 0.25 * len(groups) * len(contenders)), layout="constrained")
    axes = figure.add_subplot()
    for i, contender in enumerate(contenders):
        found = {(row.model, row.precision): row for row in rows if row.contender == contender}
        places = [j + (i + 0.5) / (len(contenders) + 1) for j, group in enumerate(groups) if group in found]
        bars = axes.barh(
            places,
            [found[group].over_plain or 0.0 for group in groups if group in found],
            height=1 / (len(contenders) + 1),
            label=contender,
        )
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks([j + 0.4 for j in range(len(groups))], [f"{model}, {precision}" for model, precision in groups])
    axes.invert_yaxis()
    axes.set_xlabel("speed, over the plain float32 loop")
    axes.legend()
    figure.savefig(path, dpi=150)


def main(
    models: Positional[tuple[str, ...]] = TABLE,
    /,
    *,
    contenders: tuple[str, ...] = ("ours", "by hand", "plain", "timm"),
    precisions: tuple[Precision, ...] = ("float32", "bfloat16"),
    batch_size: int = 128,
    image_size: int = 32,
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu",
    steps: int = 2,
    rounds: int = 5,
    json_file: Annotated[Path | None, arg(name="json")] = None,
    plot: Path | None = None,
) -> None:
    """Time training steps, ours beside others that train the same model with the same optimizer, and print a table.

    `ours` is the step of the library. `by hand` is the best plain loop that we could write: channels_last, autocast, a
    fused optimizer, data on the device, and our settings of the allocator. `plain` is the loop that people write: NCHW,
    float32, torch.optim with its defaults, the allocator as it is. `timm` trains timm's model as `by hand` does ours,
    where it is the same. Each contender has a process of its own, for the sake of the memory and the allocator, and all
    wait while one computes: a few steps each in turn. Medians over all rounds. Linux only.

    Args:
        models: which; none for the ten of the reference.
        contenders: loops to time: "ours" and "by hand", also with ", compiled" or ", CUDA graph" after it; "timm";
            "plain".
        precisions: of the model; plain is always float32.
        batch_size: images a step.
        image_size: pixels, height and width.
        device: where to compute.
        steps: of each contender in a round; a GPU wants 20 or more, which queue up.
        rounds: of all contenders.
        json_file: file to write the rows to.
        plot: file to draw a bar chart in, of the speed over that of plain.

    Raises:
        InputError: a name is unknown, or there is no plain loop to draw the others over.
    """
    for each in contenders:
        check_known("contender", each, CONTENDERS)
    if plot is not None and "plain" not in contenders:
        raise InputError("--plot draws the speed over that of plain, which is not among the --contenders; add it")
    rows: list[Row] = []
    print(HEAD)
    for model in models:
        check_known("model", model, MODELS)
        for precision in precisions:
            setting = Setting(model, precision, batch_size, image_size, device, keep_memory=True)
            found = measure(setting, contenders, steps, rounds)
            for row in found:
                print(row, flush=True)
            rows += found
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if plot is not None:
        draw(rows, plot)


if __name__ == "__main__":
    run_script(main)
