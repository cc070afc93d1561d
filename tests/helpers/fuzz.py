"""Train with random options, right and wrong ones, of all components: each time it ends well, or in one message.

`PYTHONPATH=.:tests python tests/helpers/fuzz.py --draws 500`
"""

import json
import math
import os
import random
import shlex
import tempfile
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from backbones.commands.exit import run_command
from backbones.commands.options import FUNCTIONS
from backbones.commands.train import main as train
from backbones.component import Option, options_of
from backbones.experiment import Experiment
from backbones.ranges import choices_of, range_of
from backbones.run.checkpoint import find_checkpoint, read_checkpoint
from backbones.run.checkpoint.arrays import to_tensor
from experiments import EXPERIMENTS

SMALL = ("vit-tiny", "mixer-tiny", "airbench", "convnext-atto", "mobilenet", "shufflenet-g2", "wrn-16-8", "se-resnet18")
"""Models whose step takes a second at most."""

FIXED = ("name", "steps", "epochs", "init_from", "device", "compile", *FUNCTIONS)
"""Fields of an experiment that are not drawn: they would train for hours, or are drawn as components."""


def draw_value(option: Option, generator: random.Random) -> list[str]:
    """What stands after the name of an option: half of the time a value that it may have."""
    annotation, default = option.annotation, option.default
    interval, choices = range_of(annotation), choices_of(annotation)
    if isinstance(default, bool):
        return []
    values: list[Any] = ["x", "", "nan", "inf", "-1", "1e300", "0.5", "-0.1", "~", "None"]
    if choices:
        good: list[Any] = list(choices)
    elif interval is not None:
        low, high = interval.low, min(interval.high, max(4 * interval.low, 4))
        is_integer = isinstance(default, int) or "int" in str(annotation)
        good = [default, low, low + 1] if is_integer else [default, low, (low + high) / 2]
        good = [int(value) if is_integer and isinstance(value, float) else value for value in good]
        values += [low, low - 1, interval.high]
    else:
        good = [default]
    value = generator.choice(good if generator.random() < 0.5 else values)
    return [str(each) for each in value] if isinstance(value, tuple) else [str(value)]


def draw(generator: random.Random) -> list[str]:
    """A command line: some components by name, and a few options of what was chosen."""
    args = ["--steps", "2", "--batch-size", "8", "--device", "cpu", "--compile", "off", "--log-every", "1"]
    options = {f"--{name}": option for name, option in options_of(Experiment, given=FIXED).items()}
    for kind, functions in FUNCTIONS.items():
        name = generator.choice({"data": ["digits"], "model": SMALL}.get(kind, [*functions]))
        args += [f"--{kind}", "helpers.resumed:few_digits" if kind == "data" else name]
        options |= {f"--{kind}.{option}": value for option, value in options_of(functions[name]).items()}
    for name in generator.sample(sorted(options), generator.randint(1, 3)):
        flag = name.replace("_", "-")
        if isinstance(options[name].default, bool) and generator.random() < 0.5:
            component, dot, field = flag[2:].rpartition(".")
            flag = f"--{component}{dot}no-{field}"
        args += [flag, *draw_value(options[name], generator)]
    return args


def check(args: list[str]) -> str:
    """Train in an empty folder; return how it ended, or raise AssertionError if it was not one of the good ways."""
    out, err, code = StringIO(), StringIO(), None
    with redirect_stdout(out), redirect_stderr(err):
        try:
            run_command(lambda _: train([*args, "--run-dir", "run"], EXPERIMENTS))
        except SystemExit as exit:
            code = exit.code
    if code == 0:
        result = json.loads(Path("run/result.json").read_text())
        assert math.isfinite(result["loss"]) and result["steps"] == 2, result
        arrays = read_checkpoint(find_checkpoint(Path("run"))).arrays
        bad = [name for name, leaf in arrays.items() if not to_tensor(leaf).isfinite().all()]
        assert not bad, bad
        return "trained"
    if code == 2:
        assert err.getvalue() and "Traceback" not in err.getvalue(), err.getvalue()
        return "refused by the parser"
    assert isinstance(code, str) and code.startswith("error: "), (code, err.getvalue())
    assert not Path("run").exists() or (Path("run") / "config.json").exists()
    return "diverged" if "not finite" in code else "refused"


def main(*, draws: int = 500, seed: int = 0) -> Counter[str]:
    """Train with random options, and count how it ended.

    Args:
        draws: how many command lines.
        seed: seed of them.
    """
    generator, ends, home = random.Random(seed), Counter[str](), os.getcwd()
    for _ in tqdm(range(draws)):
        args = draw(generator)
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                ends[check(args)] += 1
            except BaseException as error:
                error.add_note(f"with train.py {shlex.join(args)}")
                raise
            finally:
                os.chdir(home)
    print(f"{draws} command lines: " + ", ".join(f"{count} {end}" for end, count in ends.most_common()))
    return ends


if __name__ == "__main__":
    tyro.cli(main)
