"""Accuracy and cost of every optimizer: `python -m benchmarks.optimizers --help`."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

import backbones.distributed as distributed
import backbones.random as random
import backbones.tree as tree
from backbones import optim
from backbones.commands.exit import run_command
from backbones.data import digits
from backbones.errors import check_known
from backbones.jit import jit
from backbones.models import Model
from backbones.optim import hidden_matrices
from backbones.run.run import run
from backbones.types import OptState, Params
from experiments import EXPERIMENTS

Call = Callable[[], object]

COUNTERPARTS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, weight_decay=5e-4),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "adafactor": torch.optim.Adafactor,
    "sam-sgd": partial(torch.optim.SGD, momentum=0.9, weight_decay=5e-4),
}
"""The optimizer of torch.optim that computes the same."""

FUSED = ("sgd", "adam", "adamw", "sam-sgd")
"""Those with a fused implementation on every device."""


def main(
    names: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    runs: Path = Path("runs/optimizers"),
    accuracy: bool = True,
    update: bool = True,
    rounds: int = 20,
) -> None:
    """Train ResNet-18 on the digits with every optimizer, time its step and its update, and print two tables.

    Times are medians over interleaved calls. The update is of 11 million float32 parameters: our `update` and
    `apply_updates`, eager and compiled, beside `step` of torch.optim.

    Args:
        names: optimizers; all if empty.
        runs: folder of the runs; a finished run is not repeated.
        accuracy: print the first table: accuracy, time of a step, size of the state.
        update: print the second table: the update alone, in ms.
        rounds: calls for each median; a quarter as many whole steps.

    Raises:
        InputError: a name is unknown.
    """
    names = tuple(check_known("optim", name, optim.OPTIMIZERS) for name in names) or tuple(optim.OPTIMIZERS)
    device = distributed.init("auto")
    params = make_params(device)
    if accuracy:
        top1 = {name: train_recipe(name, runs) for name in names}
        seconds = median_seconds({name: make_whole_step(name) for name in names}, rounds=max(rounds // 4, 3))
        print("| optimizer | top-1 | ms a step | state, bytes a parameter |\n|---|--:|--:|--:|")
        for name in names:
            state_bytes = state_size(name, params) / tree.size(params)
            print(f"| {name} | {top1[name]:.2%} | {1e3 * seconds[name]:.0f} | {state_bytes:.2f} |")
    if update:
        ratios = "over foreach | over fused |"
        print(f"\n| optimizer | foreach | fused | eager | {ratios} compiled | {ratios}")
        print("|---|" + "--:|" * 8)
        for name in names:
            torch.compiler.reset()  # otherwise all these updates count as recompilations of one function
            seconds = median_seconds(make_updates(name, params), rounds=rounds)
            foreach, fused = seconds.get("foreach"), seconds.get("fused")
            cells = [f"{1e3 * each:.1f}" if each else "" for each in (foreach, fused)]
            for ours in (seconds["eager"], seconds["compiled"]):
                cells += [f"{1e3 * ours:.1f}", *(f"{ours / each:.2f}" if each else "" for each in (foreach, fused))]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def train_recipe(name: str, runs: Path) -> float:
    """Held-out accuracy at the end of its recipe, which is run unless its result is there."""
    result = runs / name / "result.json"
    if not result.exists():
        run(EXPERIMENTS[f"digits-resnet18-{name}"], run_dir=runs / name)
    return json.loads(result.read_text())["top1"]


def make_whole_step(name: str) -> Call:
    """A train step of its recipe, on a batch of digits."""
    program = EXPERIMENTS[f"digits-resnet18-{name}"].make()
    state, batch = program.state, program.batches(0)

    def step() -> None:
        nonlocal state
        state, _ = program.train_step(state, batch)

    return step


def make_model() -> Model:
    """ResNet-18, of 11 million parameters."""
    return EXPERIMENTS["digits-resnet18"].make_model(digits().info)


def make_params(device: torch.device) -> Params:
    """Its parameters."""
    params, _ = make_model().init(random.generator(0))
    return tree.map(lambda leaf: leaf.to(device), params)


def make_grads(params: Params) -> Params:
    """Random gradients with the memory formats of the parameters."""
    return tree.map(lambda leaf: torch.randn_like(leaf) * 1e-2, params)


def make_updates(name: str, params: Params) -> dict[str, Call]:
    """Updates of all parameters: ours, eager and compiled, and those of torch.optim."""
    calls = {"eager": make_our_update(name, params, compiled=False)}
    calls["compiled"] = make_our_update(name, params, compiled=True)
    if name in COUNTERPARTS:
        calls["foreach"] = make_their_update(COUNTERPARTS[name], params, foreach=True)
    if name in FUSED:
        calls["fused"] = make_their_update(COUNTERPARTS[name], params, fused=True)
    if name == "muon":
        calls["foreach"] = make_their_muon(params)
    return calls


def make_alias(name: str) -> optim.GradientTransformation:
    """The optimizer of that name, with its default options."""
    given = {"hidden": hidden_matrices(make_model().roles)} if name == "muon" else {}
    return optim.OPTIMIZERS[name](**given)


def make_our_update(name: str, params: Params, *, compiled: bool) -> Call:
    """An update of the alias with its default options, as in the train step; SAM gets its second gradient for free."""
    optimizer, grads = make_alias(name), make_grads(params)
    with_grad_fn = optim.with_grad_fn(optimizer.update)

    def update(state: tuple[Params, OptState], grads: Params) -> tuple[tuple[Params, OptState], tuple[()]]:
        params, opt_state = state
        updates, opt_state = with_grad_fn(grads, opt_state, params, grad_fn=lambda params: grads)
        return (optim.apply_updates(params, updates), opt_state), ()

    update = jit(update, mode="compile" if compiled else "eager", donate=True)
    params = tree.map(torch.clone, params)
    state = params, optimizer.init(params)

    def call() -> None:
        nonlocal state
        state, _ = update(state, grads)

    return call


def make_their_update(optimizer: Callable[..., torch.optim.Optimizer], params: Params, **options: bool) -> Call:
    """`optimizer.step` of torch.optim."""
    return optimizer(_leaves(params), **options).step


def make_their_muon(params: Params) -> Call:
    """torch.optim.Muon for the hidden kernels as matrices, AdamW for the rest."""
    is_hidden = hidden_matrices(make_model().roles)
    hidden = {name: leaf for name, leaf in params.items() if is_hidden(name, leaf)}
    rest = {name: leaf for name, leaf in params.items() if name not in hidden}
    muon = torch.optim.Muon(_leaves({name: leaf.flatten(1) for name, leaf in hidden.items()}), momentum=0.95)
    adamw = torch.optim.AdamW(_leaves(rest), foreach=True)
    return lambda: (muon.step(), adamw.step())


def _leaves(params: Params) -> list[Tensor]:
    leaves = [leaf.clone().requires_grad_() for leaf in params.values()]
    for leaf in leaves:
        leaf.grad = torch.randn_like(leaf) * 1e-2
    return leaves


def state_size(name: str, params: Params) -> int:
    """Bytes of the optimizer's state."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree.leaves(make_alias(name).init(params)))


def median_seconds(calls: dict[str, Call], *, rounds: int) -> dict[str, float]:
    """Median seconds of each call; the calls are interleaved, and the first two rounds are not counted."""
    seconds: dict[str, list[float]] = {key: [] for key in calls}
    for _ in tqdm(range(rounds + 2), unit="round", leave=False, disable=not sys.stderr.isatty()):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[key].append(time.perf_counter() - start)
    return {key: statistics.median(each[2:]) for key, each in seconds.items()}


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m benchmarks.optimizers"))
