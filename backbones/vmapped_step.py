"""Several trainings in one step: their states are stacked leaf by leaf, and `torch.vmap` moves them all.

states, step = tree.stack([program.state for program in programs]), make_vmapped_step(experiments, dataset)
states, metrics = step(states, tree.stack([program.batches(0) for program in programs]))
"""

import dataclasses
import re
from collections.abc import Sequence

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import backbones.random as random
import backbones.tree as tree
from backbones import optim
from backbones.data import Dataset
from backbones.errors import InputError
from backbones.experiment import Experiment, use
from backbones.optim.base import GradientTransformation
from backbones.optim.schedule import constant
from backbones.train_step import TrainState, TrainStep, seeded
from backbones.types import Batch, Metrics, OptState, Updates

IN_DIMS = (0, Batch(0, 0, None, 0, 0, 0))  # type: ignore[arg-type]
"""The dimension of a state and of a batch in which the members lie; a batch has no targets before it is augmented."""


def make_vmapped_step(experiments: Sequence[Experiment], dataset: Dataset) -> TrainStep:
    """The train step of several experiments at once; eager, in one process.

    Every leaf of its state, its batch and its metrics has a first dimension, that of the experiments. What it computes
    is what their own steps compute, up to rounding, but for dropout: it draws from torch's generator, seeded by the
    seed of the first, and other numbers for each member.

    Raises:
        InputError: as `check_vmappable`; or, when it is called, the step has an operation that does not vmap.
    """
    check_vmappable(experiments, dataset)
    step = torch.vmap(experiments[0].make_pure_step(dataset), in_dims=IN_DIMS, randomness="different")

    def vmapped(states: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        # vmap calls fused attention, or its backward, once for each member, and then dropout is another one backward
        with sdpa_kernel(SDPBackend.MATH):
            try:
                return step(states, batches)
            except RuntimeError as error:
                if not re.search("vmap|Batching rule|data pointer", str(error)):
                    raise
                reason = str(error).partition(". ")[0]
                raise InputError(f"--how vmap: this step does not vmap, use another way: {reason}") from error

    return seeded(vmapped, experiments[0].seed)


def draws_numbers(experiment: Experiment, dataset: Dataset) -> bool:
    """Whether a train step draws from torch's generator, as dropout does."""
    program = dataclasses.replace(experiment, compile="off", init_from=None).make(dataset)
    device = program.state.step.device
    only_seeded = seeded(lambda state, batch: (state, {}), experiment.seed)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        generators = []
        for step in (only_seeded, program.train_step):
            step(program.state, program.batches(0))
            generators.append(torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state())
    return not torch.equal(*generators)


def check_vmappable(experiments: Sequence[Experiment], dataset: Dataset) -> None:
    """Check that experiments differ in nothing but what their states hold: the seed, and hyperparameters.

    `clip`, `ema` or an option of the optimizer is a hyperparameter if another value of it changes 0-D leaves of the
    optimizer's state, and nothing else of what an update computes.

    Raises:
        InputError: they differ in something else, or their step is to be compiled, or to go back at a spike.
    """
    first = experiments[0]
    if first.compile in ("on", "cudagraph"):
        raise InputError(f"a vmapped step is eager, and --compile is {first.compile}; set --compile off")
    if first.rewind is not None:
        raise InputError(
            "all members of a vmapped step go on together, and --rewind would go back with one; leave it out"
        )
    variants = _variants(experiments)
    model, num_steps = first.make_model(dataset.info), first.num_steps(dataset)
    params, _ = model.init(random.generator(0))
    generator = random.generator(1)
    updates = {name: torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for name, leaf in params.items()}

    def make_optimizer(experiment: Experiment) -> GradientTransformation:
        # without a warm-up, in whose first update everything is 0
        return dataclasses.replace(experiment, schedule=use(constant)).make_optimizer(model.roles, num_steps)

    def updated(optimizer: GradientTransformation, state: OptState) -> tuple[Updates, OptState]:
        return optim.with_grad_fn(optimizer.update)(updates, state, params, grad_fn=lambda params: updates)

    optimizer = make_optimizer(first)
    before = optimizer.init(params)
    for name, variant in variants.items():
        other = make_optimizer(variant)
        state = other.init(params)
        in_the_state = _shapes(state) == _shapes(before) and not _equal(
            optim.hyperparams(state), optim.hyperparams(before)
        )
        if not in_the_state or not _equal(updated(other, state), updated(optimizer, state)):
            raise _not_in_the_state(name.partition("=")[0])


def _variants(experiments: Sequence[Experiment]) -> dict[str, Experiment]:
    """`OPTION=VALUE` -> the first experiment with that value, for each option in which another one differs from it.

    Raises:
        InputError: an option is none of the optimizer.
    """
    first, variants = experiments[0], {}
    for each in experiments[1:]:
        for field, value in vars(each).items():
            if value == getattr(first, field) or field in ("name", "seed"):
                continue
            if field == "optim" and each.optim.function is first.optim.function:
                for option, new in each.optim.values.items():
                    if new != first.optim.values[option]:
                        variant = first.optim.replace(**{option: new})
                        variants[f"optim.{option}={new}"] = dataclasses.replace(first, optim=variant)
            elif field in ("clip", "ema"):
                variants[f"{field}={value}"] = dataclasses.replace(first, **{field: value})
            else:
                raise _not_in_the_state(field)
    return variants


def _not_in_the_state(option: str) -> InputError:
    return InputError(
        f"these experiments cannot share a vmapped step: they differ in {option}, which the state of a training does "
        "not hold. It holds the seed and the hyperparameters of an optimizer, where they are numbers in its state"
    )


def _shapes(state: OptState) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {path: (leaf.dtype, leaf.shape) for path, leaf in tree.named_leaves(state).items()}


def _equal(one: tree.Tree, other: tree.Tree) -> bool:
    return all(map(torch.equal, tree.leaves(one), tree.leaves(other)))
