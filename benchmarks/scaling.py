"""What several processes cost: `torchrun --nproc_per_node 2 -m benchmarks.scaling --help`."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

import tyro

import backbones.distributed as distributed
import backbones.tree as tree
from backbones.experiment import Program
from benchmarks import interleaved
from experiments.digits import digits_resnet18

GBITS = (0.1, 1, 10, 100)
"""Bandwidths of the model, Gbit/s in each direction."""

MACHINES = (2, 8, 64)


def main(*, steps: int = 5, rounds: int = 5, batch_size: int = 32) -> None:
    """Time the steps of ResNet-18 on the digits in all processes, with and without messages between BatchNorms.

    In one process, then, what would be left of its speed over slower networks: a ring all-reduce (Patarasuk and Yuan,
    "Bandwidth optimal all-reduce algorithms", 2009) sends 2 (n - 1) / n of the gradient, 4 bytes a parameter, while the
    backward pass, two thirds of the step, computes; the rest is waited for.

    Args:
        steps: of each measurement.
        rounds: measurements of each kind, interleaved; the median counts.
        batch_size: images a step of each process.
    """
    distributed.init("auto")
    size = distributed.world_size()
    experiment = replace(digits_resnet18, batch_size=batch_size * size)
    programs = {"as it is": experiment.make(), "--sync-batch-norm": replace(experiment, sync_batch_norm=True).make()}
    params = programs["as it is"].state.params
    ways: dict[str, Callable[[], float]] = {
        name: partial(_seconds_of_a_step, [program.state], program, steps) for name, program in programs.items()
    }
    times = {name: median(values) for name, values in interleaved(ways, rounds).items()}
    if not distributed.is_main():
        return
    print(f"{size} processes, {batch_size} images each\n\n| step | ms | ratio | images/s |\n|---|--:|--:|--:|")
    for name, seconds in times.items():
        ratio = seconds / times["as it is"]
        print(f"| {name} | {1e3 * seconds:.0f} | {ratio:.2f} | {batch_size * size / seconds:.0f} |")
    if size == 1:
        _print_model(times["as it is"], 4 * tree.size(params), batch_size)


def _seconds_of_a_step(states: list, program: Program, steps: int) -> float:
    start = time.perf_counter()
    for step in range(steps):
        states[0], metrics = program.train_step(states[0], program.batches(step))
        metrics["loss"].item()  # waits for the device
    return (time.perf_counter() - start) / steps


def _print_model(seconds: float, num_bytes: int, batch_size: int) -> None:
    print(f"\nimages/s of each process: {1e3 * seconds:.0f} ms a step, {num_bytes / 1e6:.0f} MB of gradient\n")
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
    tyro.cli(main)
    distributed.shut_down()
