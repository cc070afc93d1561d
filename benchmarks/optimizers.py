"""Accuracy and cost of every optimizer: `python -m benchmarks.optimizers --help`."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import tyro
from torch import Tensor

import backbones.tree as tree
from backbones import optim
from backbones.component import use
from backbones.data import digits
from backbones.errors import check_known
from backbones.jit import Mode, jit
from backbones.run.run import run
from backbones.types import OptState, Params
from benchmarks import median_seconds, run_script
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
"""The optimizer of torch.optim that computes the same, or the closest one."""

FUSED = ("sgd", "adam", "adamw", "sam-sgd")
"""Those with a fused implementation on every device."""


def main(
    names: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    runs: Path = Path("benchmark-runs/optimizers"),
    accuracy: bool = True,
    update: bool = True,
    rounds: int = 20,
) -> None:
    """Train ResNet-18 on the digits with every optimizer, or those named, and print two tables.

    `--accuracy`: accuracy, time of a step, size of the state. A run that is finished in `--runs` is not repeated.
    `--update`: ms of the update of 11 million float32 parameters alone, our `update` and `apply_updates`, eager and
    compiled, beside `step` of torch.optim. Times are medians of `--rounds` interleaved calls, or a quarter as many
    whole steps.
    """
    names = tuple(check_known("optim", name, optim.OPTIMIZERS) for name in names) or tuple(optim.OPTIMIZERS)
    if accuracy:
        print_recipes(names, runs, rounds=max(rounds // 4, 3))
    if update:
        print_updates(names, rounds)


def print_recipes(names: Sequence[str], runs: Path, rounds: int) -> None:
    """Print the first table; a recipe is trained unless its result is there."""
    recipes = {name: EXPERIMENTS[f"digits-resnet18-{name}"] for name in names}
    for name, recipe in recipes.items():
        if not (runs / name / "result.json").exists():
            run(recipe, run_dir=runs / name)
    programs = {name: recipe.make() for name, recipe in recipes.items()}
    steps = {name: repeated(made.train_step, made.state, made.batches(0)) for name, made in programs.items()}
    seconds = median_seconds(steps, rounds, warmup=2)
    print("| optimizer | top-1 | ms per step | state, bytes per parameter |\n|---|--:|--:|--:|")
    for name, program in programs.items():
        top1 = json.loads((runs / name / "result.json").read_text())["top1"]
        size = sum(leaf.nbytes for leaf in tree.leaves(program.state.opt_state)) / tree.size(program.state.params)
        print(f"| {name} | {top1:.2%} | {1e3 * seconds[name]:.0f} | {size:.2f} |")


def repeated(step: Callable[..., tuple[tree.Tree, object]], state: tree.Tree, argument: tree.Tree) -> Call:
    """A call of `step(state, argument) -> (state, ...)` with the state that the last call returned."""

    def call() -> None:
        nonlocal state
        state, _ = step(state, argument)

    return call


def print_updates(names: Sequence[str], rounds: int) -> None:
    """Print the second table."""
    experiment = EXPERIMENTS["digits-resnet18"]
    model = experiment.make_model(digits().info)
    params, is_hidden = experiment.make(model=model).state.params, optim.hidden_matrices(model.roles)
    ratios = "over foreach | over fused |"
    print(f"\n| optimizer | foreach | fused | eager | {ratios} compiled | {ratios}\n|---|" + "--:|" * 8)
    for name in names:
        torch.compiler.reset()  # otherwise all these updates count as recompilations of one function
        seconds = median_seconds(make_updates(name, params, is_hidden), rounds, warmup=2)
        theirs = seconds.get("foreach"), seconds.get("fused")
        cells = [f"{1e3 * each:.1f}" if each else "" for each in theirs]
        for ours in (seconds["eager"], seconds["compiled"]):
            cells += [f"{1e3 * ours:.1f}", *(f"{ours / each:.2f}" if each else "" for each in theirs)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def make_updates(name: str, params: Params, is_hidden: optim.Mask) -> dict[str, Call]:
    """Updates of all parameters: ours with its default options, eager and compiled, and those of torch.optim."""
    optimizer = use(optim.OPTIMIZERS[name]).make(hidden=is_hidden)
    calls = {"eager": make_our_update(optimizer, params, "eager")}
    calls["compiled"] = make_our_update(optimizer, params, "compile")
    if name in COUNTERPARTS:
        calls["foreach"] = COUNTERPARTS[name](with_grads(params), foreach=True).step
    if name in FUSED:
        calls["fused"] = COUNTERPARTS[name](with_grads(params), fused=True).step
    if name == "muon":
        hidden = {name: leaf.flatten(1) for name, leaf in params.items() if is_hidden(name, leaf)}
        muon = torch.optim.Muon(with_grads(hidden), momentum=0.95)
        rest = {name: leaf for name, leaf in params.items() if name not in hidden}
        adamw = torch.optim.AdamW(with_grads(rest), foreach=True)
        calls["foreach"] = lambda: (muon.step(), adamw.step())
    return calls


def make_our_update(optimizer: optim.GradientTransformation, params: Params, mode: Mode) -> Call:
    """An update as in the train step; SAM gets its second gradient for free."""
    grads = tree.map(lambda leaf: torch.randn_like(leaf) * 1e-2, params)
    with_grad_fn = optim.with_grad_fn(optimizer.update)

    def update(state: tuple[Params, OptState], grads: Params) -> tuple[tuple[Params, OptState], tuple[()]]:
        params, opt_state = state
        updates, opt_state = with_grad_fn(grads, opt_state, params, grad_fn=lambda params: grads)
        return (optim.apply_updates(params, updates), opt_state), ()

    params = tree.map(torch.clone, params)
    return repeated(jit(update, mode=mode, donate=True), (params, optimizer.init(params)), grads)


def with_grads(params: Params) -> list[Tensor]:
    """Copies of the leaves, with random gradients."""
    leaves = [leaf.clone().requires_grad_() for leaf in params.values()]
    for leaf in leaves:
        leaf.grad = torch.randn_like(leaf) * 1e-2
    return leaves


if __name__ == "__main__":
    run_script(main)
