"""What every optimizer reaches and what it costs: `python -m benchmarks.optimizers --help`."""

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
import train
from backbones import optim
from backbones.command_line import one_message
from backbones.data import channel_statistics, train_batch
from backbones.donate import donating
from backbones.errors import check_known
from backbones.optim.label import is_hidden_matrix
from backbones.train_step import init_train_state, make_loss_fn, make_train_step
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
"""What does the same work in torch.optim."""

FUSED = ("sgd", "adam", "adamw", "sam-sgd")
"""Those of them that have a fused form on every device."""


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

    The times are medians of calls that take turns. The update is that of 11 million float32 parameters: `update` and
    `apply_updates` here, eager and compiled, beside `step` in torch.optim.

    Args:
        names: optimizers; none for all.
        runs: folder of the runs; one that is finished is not run again.
        accuracy: print the first table: accuracy, time of a step, state.
        update: print the second table: the update alone, in ms.
        rounds: calls that each median is of; of whole steps a quarter.

    Raises:
        InputError: a name is unknown.
    """
    names = tuple(check_known("optim", name, optim.OPTIMIZERS) for name in names) or tuple(optim.OPTIMIZERS)
    device = distributed.init("auto")
    params = make_params(device)
    if accuracy:
        reached = {name: train_recipe(name, runs) for name in names}
        seconds = median_seconds({name: make_whole_step(name, device) for name in names}, rounds=max(rounds // 4, 3))
        print("| optimizer | top-1 | ms a step | state, bytes a parameter |\n|---|--:|--:|--:|")
        for name in names:
            state_bytes = state_size(name, params) / tree.size(params)
            print(f"| {name} | {reached[name]:.2%} | {1e3 * seconds[name]:.0f} | {state_bytes:.2f} |")
    if update:
        ratios = "over foreach | over fused |"
        print(f"\n| optimizer | foreach | fused | eager | {ratios} compiled | {ratios}")
        print("|---|" + "--:|" * 8)
        for name in names:
            torch.compiler.reset()  # else all these updates count as recompilations of one
            seconds = median_seconds(make_updates(name, params), rounds=rounds)
            foreach, fused = seconds.get("foreach"), seconds.get("fused")
            cells = [f"{1e3 * each:.1f}" if each else "" for each in (foreach, fused)]
            for ours in (seconds["eager"], seconds["compiled"]):
                cells += [f"{1e3 * ours:.1f}", *(f"{ours / each:.2f}" if each else "" for each in (foreach, fused))]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def train_recipe(name: str, runs: Path) -> float:
    """Held-out accuracy at the end of the run of its recipe, which is run first unless it is there."""
    result = runs / name / "result.json"
    if not result.exists():
        train.main(EXPERIMENTS[f"digits-resnet18-{name}"], run_dir=runs / name)
    return json.loads(result.read_text())["top1"]


def make_whole_step(name: str, device: torch.device) -> Call:
    """A train step of its recipe, on a batch of digits."""
    experiment = EXPERIMENTS[f"digits-resnet18-{name}"]
    dataset = experiment.data.make().to(device)
    mean, std = channel_statistics(dataset.train)
    model = experiment.model.make(tuple(dataset.train.images.shape[1:]), len(dataset.class_names))
    optimizer = experiment.optim.make(experiment.schedule.make(experiment.steps))
    state = init_train_state(model, optimizer, seed=0, device=device)
    loss_fn = make_loss_fn(model, label_smoothing=0.0)
    update, compiles = optim.make_update(optimizer), device.type == "cuda"
    train_step = make_train_step(
        distributed.grad_and_value(loss_fn, state.params),
        update if compiles else donating(update, donate_argnums=(1, 2)),
        augment=dataset.augment,
        mean=mean,
        std=std,
    )
    train_step = torch.compile(train_step, disable=not compiles)
    batch = train_batch(dataset.train, seed=0, step=0, batch_size=experiment.batch_size)

    def step() -> None:
        nonlocal state
        state, _ = train_step(state, batch)

    return step


def make_params(device: torch.device) -> Params:
    """Those of ResNet-18: 11 million."""
    params, _ = EXPERIMENTS["digits-resnet18"].model.make((3, 32, 32), 10).init(random.generator(0))
    return tree.map(lambda leaf: leaf.to(device), params)


def make_grads(params: Params) -> Params:
    """Random ones, laid out like the parameters."""
    return tree.map(lambda leaf: torch.randn_like(leaf) * 1e-2, params)


def make_updates(name: str, params: Params) -> dict[str, Call]:
    """Updates of 11 million parameters: ours, eager and compiled, and those of torch.optim."""
    calls = {"eager": make_our_update(name, params, compiled=False)}
    calls["compiled"] = make_our_update(name, params, compiled=True)
    if name in COUNTERPARTS:
        calls["foreach"] = make_their_update(COUNTERPARTS[name], params, foreach=True)
    if name in FUSED:
        calls["fused"] = make_their_update(COUNTERPARTS[name], params, fused=True)
    if name == "muon":
        calls["foreach"] = make_their_muon(params)
    return calls


def make_our_update(name: str, params: Params, *, compiled: bool) -> Call:
    """The alias as it stands, in the memory of its state, as in the train step."""
    optimizer, grads = optim.OPTIMIZERS[name](), make_grads(params)
    params, opt_state = tree.map(torch.clone, params), optimizer.init(params)

    def update(grads: Params, opt_state: OptState, params: Params) -> tuple[Params, OptState]:
        updates, new_state = optimizer.update(grads, opt_state, params)
        return tree.donate((params, opt_state), (optim.apply_updates(params, updates), new_state))

    update = torch.compile(update, fullgraph=True) if compiled else donating(update, donate_argnums=(1, 2))

    def call() -> None:
        nonlocal params, opt_state
        params, opt_state = update(grads, opt_state, params)

    return call


def make_their_update(optimizer: Callable[..., torch.optim.Optimizer], params: Params, **options: bool) -> Call:
    """`optimizer.step` of torch.optim."""
    return optimizer(_lend(params), **options).step


def make_their_muon(params: Params) -> Call:
    """torch.optim.Muon for the hidden kernels as matrices, AdamW for the rest."""
    hidden = {name: leaf for name, leaf in params.items() if is_hidden_matrix(name, leaf)}
    rest = {name: leaf for name, leaf in params.items() if name not in hidden}
    muon = torch.optim.Muon(_lend({name: leaf.flatten(1) for name, leaf in hidden.items()}), momentum=0.95)
    adamw = torch.optim.AdamW(_lend(rest), foreach=True)
    return lambda: (muon.step(), adamw.step())


def _lend(params: Params) -> list[Tensor]:
    leaves = [leaf.clone().requires_grad_() for leaf in params.values()]
    for leaf in leaves:
        leaf.grad = torch.randn_like(leaf) * 1e-2
    return leaves


def state_size(name: str, params: Params) -> int:
    """Bytes that the optimizer remembers."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree.leaves(optim.OPTIMIZERS[name]().init(params)))


def median_seconds(calls: dict[str, Call], *, rounds: int) -> dict[str, float]:
    """Median seconds of each call; they take turns, and the first two turns do not count."""
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
    with one_message():
        tyro.cli(main, prog="python -m benchmarks.optimizers")
