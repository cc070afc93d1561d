"""How long sweeps take in each way, and whether `--how auto` finds the fastest: `python -m benchmarks.sweep --help`."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import tyro

from backbones.commands.train import parse
from backbones.errors import check_known
from backbones.run.sweep.choose import make_step, seconds_of
from backbones.run.sweep.members import How, read_sweep
from backbones.torch_settings import torch_settings_kept
from benchmarks import medians, run_script

MODELS = {
    "vit": "experiments.digits:digits_vit_tiny --model.width 64 --model.depth 4 --model.heads 2 --model.mlp-width 128 "
    "--model.patch-size 4 --model.dropout 0",
    "mixer": "experiments.digits:digits_vit_tiny --model mixer-tiny --model.depth 4",
    "airbench": "experiments.digits:digits_resnet18 --model airbench",
    "mobilenet": "experiments.digits:digits_resnet18 --model mobilenet",
}
"""Name -> what is trained."""

OPTIONS = "--batch-size 32 --eval-every 1000000 --save-every 1000000 --schedule.warmup-steps 10"


def main(
    names: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    members: int = 4,
    seconds: float = 40.0,
    rounds: int = 1,
    ways: tuple[How, ...] = ("sequence", "processes", "vmap"),
) -> None:
    """Run small sweeps over the learning rate as users do, in each way and by auto in turn; print how long they took.

    Four models on the digits, four ways: by default some ten minutes on two cores.

    Args:
        names: which models: vit, mixer, airbench, mobilenet; none for all.
        members: runs of a sweep.
        seconds: about what a sweep is to take if its members run one after another, which decides their steps.
        rounds: sweeps in each way, of which the median is taken.
        ways: with which auto is compared.
    """
    print(f"| model | steps | {''.join(f'{way}, s | ' for way in ways)}auto, s | auto takes | auto over the fastest |")
    print("|---|" + "--:|" * (len(ways) + 2) + "---|--:|", flush=True)
    for name in names or MODELS:
        model = MODELS[check_known("model", name, MODELS)]
        steps = max(10 * round(seconds / members / _seconds_of_step(model) / 10), 100)
        with tempfile.TemporaryDirectory() as folder:
            calls: dict[str, Callable[[], float]] = {
                way: partial(timed, f"{model} {OPTIONS} --steps {steps}", members, way, Path(folder))
                for way in (*ways, "auto")
            }
            found = medians(calls, rounds)
            taken = {str(read_sweep(path.parent)[1].how) for path in Path(folder).glob("auto-*/sweep.json")}
        *others, auto = found.values()
        cells = [f"{each:.1f}" for each in found.values()]
        print(
            f"| {name} | {steps} | {' | '.join(cells)} | {' '.join(sorted(taken))} | {auto / min(others):.2f} |",
            flush=True,
        )


def _seconds_of_step(model: str) -> float:
    with torch_settings_kept():
        experiment = parse(f"{model} {OPTIONS} --steps 100".split(), {}).experiment
        return seconds_of(make_step(experiment, experiment.data.make(device=experiment.init_device())))


def timed(options: str, members: int, way: str, parent: Path) -> float:
    """Seconds that a sweep takes, from its command to its table."""
    rates = [str(1e-3 / 2**i) for i in range(members)]
    folder = tempfile.mkdtemp(prefix=f"{way}-", dir=parent)
    command = [sys.executable, "-m", "backbones", "sweep", *options.split(), "--over", "optim.lr", *rates]
    start = time.perf_counter()
    subprocess.run([*command, "--how", way, "--sweep-dir", folder], check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    run_script(main)
