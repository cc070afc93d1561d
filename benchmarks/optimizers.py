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
from backbones.data import channel_statistics, train_batch
from backbones.optim.label import is_hidden_matrix
from backbones.train_step import init_train_state, make_loss_fn, make_train_step
from backbones.types import InputError, OptState, Params, check_known
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
    train_them: bool = True,
    rounds: int = 30,
) -> None:
    """Train ResNet-18 on the digits with every optimizer, time its step and its update, and print a table.

    The times are medians, of interleaved calls: each round calls every optimizer once. The update is that of 11 million
    float32 parameters, `optim.step` here and `optimizer.step` in torch.optim, eager on a CPU and compiled on a GPU.

    Args:
        names: optimizers; none for all.
        runs: folder of the runs; one that is finished is not run again.
        train_them: whether to train at all.
        rounds: how often each update is timed; the whole steps a fifth as often.

    Raises:
        InputError: a name is unknown.
    """
    names = tuple(check_known("optim", name, optim.OPTIMIZERS) for name in names) or tuple(optim.OPTIMIZERS)
    accuracies = {name: reached(name, runs) if train_them else None for name in names}
    device = distributed.init("auto")
    step_seconds = interleaved({name: make_whole_step(name, device) for name in names}, rounds=max(rounds // 5, 3))
    params = make_params(device)
    update_seconds = interleaved(
        {call: make() for name in names for call, make in make_updates(name, params).items()}, rounds=rounds
    )
    print("| optimizer | top-1 | ms a step | state, bytes a parameter | ms an update | over foreach | over fused |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name in names:
        ours = update_seconds[name, "ours"]
        ratios = [
            f"{ours / update_seconds[name, kind]:.2f}" if (name, kind) in update_seconds else ""
            for kind in ("foreach", "fused")
        ]
        accuracy = "" if accuracies[name] is None else f"{accuracies[name]:.2%}"
        state_bytes = state_size(name, params) / tree.size(params)
        cells = [name, accuracy, f"{1e3 * step_seconds[name]:.0f}", f"{state_bytes:.2f}", f"{1e3 * ours:.1f}", *ratios]
        print(f"| {' | '.join(cells)} |")


def reached(name: str, runs: Path) -> float:
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
    loss_fn = make_loss_fn(model, precision=torch.float32, label_smoothing=0.0)
    train_step = make_train_step(
        distributed.grad_and_value(loss_fn, state.params), optimizer, augment=dataset.augment, mean=mean, std=std
    )
    train_step = torch.compile(train_step, disable=device.type != "cuda")
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


def make_updates(name: str, params: Params) -> dict[tuple[str, str], Callable[[], Call]]:
    """(name, kind) -> what makes an update of 11 million parameters: ours, and those of torch.optim."""
    makers: dict[tuple[str, str], Callable[[], Call]] = {(name, "ours"): partial(make_our_update, name, params)}
    if name in COUNTERPARTS:
        makers[name, "foreach"] = partial(make_their_update, COUNTERPARTS[name], params, foreach=True)
    if name in FUSED:
        makers[name, "fused"] = partial(make_their_update, COUNTERPARTS[name], params, fused=True)
    if name == "muon":
        makers[name, "foreach"] = partial(make_their_muon, params)
    return makers


def make_our_update(name: str, params: Params) -> Call:
    """`optim.step` with the alias as it stands."""
    optimizer, grads = optim.OPTIMIZERS[name](), make_grads(params)
    opt_state = optimizer.init(params)

    def update(params: Params, opt_state: OptState) -> tuple[Params, OptState]:
        new_params, _, new_state = optim.step(optimizer, grads, opt_state, params)
        return tree.donate((params, opt_state), (new_params, new_state))

    update = torch.compile(update, fullgraph=True, disable=grads["head.weight"].device.type != "cuda")

    def call() -> None:
        nonlocal params, opt_state
        params, opt_state = update(params, opt_state)

    params = tree.map(torch.clone, params)
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


def interleaved(calls: dict, *, rounds: int) -> dict:
    """Median seconds of each call, after two that do not count."""
    seconds: dict = {key: [] for key in calls}
    for _ in tqdm(range(rounds + 2), unit="round", disable=not sys.stderr.isatty()):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[key].append(time.perf_counter() - start)
    return {key: statistics.median(each[2:]) for key, each in seconds.items()}


if __name__ == "__main__":
    try:
        tyro.cli(main, prog="python -m benchmarks.optimizers")
    except InputError as error:
        sys.exit(f"error: {error}")
