"""What several processes cost: `python -m benchmarks.scaling --help`."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from statistics import median
from unittest.mock import patch

from tyro.conf import Positional

import backbones.distributed as distributed
import backbones.tree as tree
from benchmarks import interleaved, medians, run_script
from benchmarks.contenders import Precision, Setting, Step, ours

GBITS = (0.1, 1, 10, 100)
"""Bandwidths of the model, Gbit/s in each direction."""

MACHINES = (2, 8, 64)


def main(
    models: Positional[tuple[str, ...]] = ("resnet18", "vit-tiny"),
    /,
    *,
    processes: tuple[int, ...] = (1, 2),
    batch_size: int = 256,
    precision: Precision = "float32",
    steps: int = 2,
    rounds: int = 3,
) -> None:
    """Time training steps in one process and in several, which torchrun starts: on GPUs one each, else on CPU cores.

    Waiting is the share of the step that is spared when the same processes train without messages. The last table
    estimates the share of the speed that is left over slower networks: a ring all-reduce (Patarasuk and Yuan,
    "Bandwidth optimal all-reduce algorithms", 2009) sends 2 (n - 1) / n of the gradient, 4 bytes a parameter, while the
    backward pass, two thirds of the step, computes; the rest is waited for.

    Args:
        models: which.
        processes: how many, in turn; one is always the first.
        batch_size: images a step, of all processes together.
        precision: of the models.
        steps: of each measurement.
        rounds: measurements of each kind, interleaved; the median counts.
    """
    if "RANK" in os.environ:  # of torchrun, below
        measure(Setting(models[0], precision, batch_size, 32, "auto", keep_memory=True), steps)
        return
    print("| model | processes | images/s | over one | waiting | --sync-batch-norm |\n|---|--:|--:|--:|--:|--:|")
    options = ["--batch-size", str(batch_size), "--precision", precision, "--steps", str(steps)]
    ones: dict[str, dict[str, float]] = {}
    for model in models:
        runs = {str(number): partial(torchrun, number, [model, *options]) for number in dict.fromkeys((1, *processes))}
        for number, results in interleaved(runs, rounds).items():
            times = {kind: median(each[kind] for each in results) for kind in results[0]}
            seconds = times["together"]
            one = ones.setdefault(model, times)
            print(
                f"| {model} | {number} | {batch_size / seconds:.0f} | {one['together'] / seconds:.2f} "
                f"| {max(0.0, 1 - times['alone'] / seconds):.0%} | {seconds / times['sync']:.2f} |",
                flush=True,
            )
    for model, one in ones.items():
        print_model(model, one["together"], int(one["bytes"]), batch_size)


def torchrun(number: int, args: list[str]) -> dict[str, float]:
    """What `measure` finds in this many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(number), "-m", __spec__.name]
    done = subprocess.run([*command, *args], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(setting: Setting, steps: int) -> None:
    """Print as JSON the bytes of a gradient and the seconds of a step: alone, together, and with synchronous norms."""
    together = setting.experiment()
    alone = replace(together, batch_size=together.batch_size // int(os.environ["WORLD_SIZE"]))
    with patch.dict(os.environ, RANK="0", WORLD_SIZE="1"):  # each trains alone, on its own device
        programs = {"alone": alone.make()}
    programs |= {"together": together.make(), "sync": replace(together, sync_batch_norm=True).make()}
    ways = {kind: partial(seconds_of_a_step, ours(program), steps) for kind, program in programs.items()}
    times = medians(ways, 3, warmup=1)
    distributed.print0(json.dumps({**times, "bytes": 4 * tree.size(programs["alone"].state.params)}))


def seconds_of_a_step(step: Step, number: int) -> float:
    """Mean over some steps, which all processes begin together."""
    distributed.barrier()
    start = time.perf_counter()
    for i in range(number):
        step(i).item()  # waits for the device
    return (time.perf_counter() - start) / number


def print_model(model: str, seconds: float, num_bytes: int, batch_size: int) -> None:
    """Images a second of each process over networks of several bandwidths."""
    print(f"\n{model}, images/s of each process: {seconds:.2f} s a step, {num_bytes / 1e6:.0f} MB of gradient\n")
    print(f"| Gbit/s | {' | '.join(f'{n} machines' for n in MACHINES)} |\n|--:|{'--:|' * len(MACHINES)}")
    for gbits in GBITS:
        rates = [batch_size / step_time(seconds, num_bytes, n, gbits) for n in MACHINES]
        print(f"| {gbits} | {' | '.join(f'{rate:.0f}' for rate in rates)} |")


def step_time(seconds: float, num_bytes: int, num_machines: int, gbits: float) -> float:
    """Seconds of a step that takes `seconds` alone, over a network of `gbits` Gbit/s."""
    message = 2 * (num_machines - 1) / num_machines * num_bytes * 8 / (gbits * 1e9)
    backward = 2 / 3 * seconds
    return seconds - backward + max(backward, message)


if __name__ == "__main__":
    run_script(main)
