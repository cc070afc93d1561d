"""What an experiment is: a frozen dataclass of plain values, some of them components that are chosen by name.

A component (data set, model, optimizer, schedule) is a frozen dataclass made from the signature of the function that it
stands for: the keyword-only parameters are its fields, and `make` calls the function. The signature is the
configuration and its docstring the help, so a new model is one function and one line in `MODELS`.
"""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import docstring_parser
import tyro

from backbones.datasets import DATASETS
from backbones.errors import InputError
from backbones.models import MODELS
from backbones.optim import OPTIMIZERS, SCHEDULES


@dataclasses.dataclass(frozen=True)
class Component:
    """A function by its name, with its options filled in; a value to compare, print and `dataclasses.replace`."""

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return type(self).__name__

    def make(self, *args: Any) -> Any:
        """Call the function with `args` and these options."""
        raise NotImplementedError


def make_component(name: str, function: Callable[..., Any]) -> type[Component]:
    """The dataclass that stands for `function` under a name: its keyword-only parameters, their defaults and help.

    Args:
        name: what the command line and `config.json` call it.
        function: documents each keyword-only parameter under `Args:` and gives it a default.
    """
    documented = function.func if isinstance(function, partial) else function
    helps = {param.arg_name: param.description for param in docstring_parser.parse(documented.__doc__ or "").params}
    options = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]

    def make(self: Component, *args: Any) -> Any:
        return function(*args, **{option.name: getattr(self, option.name) for option in options})

    fields = [
        (option.name, Annotated[option.annotation, _make_arg(option.name, helps.get(option.name))], option.default)
        for option in options
    ]
    namespace = {"make": make, "__doc__": documented.__doc__.partition("\n")[0]}
    return dataclasses.make_dataclass(name, fields, bases=(Component,), frozen=True, kw_only=True, namespace=namespace)


SHORT_FLAGS = ("weight_decay_mask",)
"""Options that are understood without their component's name as well, as `--weight-decay-mask`."""


def _make_arg(name: str, help: str | None) -> Any:
    aliases = [f"--{name.replace('_', '-')}"] if name in SHORT_FLAGS else None
    return tyro.conf.arg(help=help, aliases=aliases)


def make_components(functions: dict[str, Callable[..., Any]]) -> dict[str, type[Component]]:
    """One component a function, by the same names."""
    return {name: make_component(name, function) for name, function in functions.items()}


DATA = make_components(DATASETS)
MODEL = make_components(MODELS)
OPTIM = make_components(OPTIMIZERS)
SCHEDULE = make_components(SCHEDULES)
"""Name -> component: `MODEL["vit-tiny"](depth=6)` here is `--model vit-tiny --model.depth 6` on the command line."""

COMPONENTS = {"data": DATA, "model": MODEL, "optim": OPTIM, "schedule": SCHEDULE}
"""Field of `Experiment` -> what it can be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides what a run computes. Two equal experiments on one machine end in equal parameters.

    Raises:
        InputError: a number is out of its range.
    """

    name: str
    """Name of the experiment, and of its run folder unless --run-dir is given."""
    data: Component
    """Data set."""
    model: Component
    """Backbone."""
    optim: Component
    """Optimizer."""
    schedule: Component
    """Factor on the learning rate over the run."""

    steps: int
    """Updates of the parameters."""
    batch_size: int
    """Images a step, over all processes and micro-batches."""
    accumulate: int = 1
    """Micro-batches that each process cuts its batch into, to save memory."""
    clip: float | None = None
    """Largest norm of the gradient; longer ones are scaled down to it."""
    ema: float | None = None
    """Decay of an exponential moving average of the parameters, which is evaluated in their place."""
    label_smoothing: float = 0.0
    """Weight in [0, 1) of the uniform distribution in the target."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What to do when the loss or a gradient is not finite: stop the run, or leave the parameters as they are."""
    seed: int = 0
    """Seed of initialisation, order of samples, augmentation and dropout."""
    init_from: str | None = None
    """Weights to start from: a run folder, a checkpoint or an exported file. A head of another size starts afresh."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto is the GPU where there is one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the model: float32 (never TF32), or bfloat16 by autocast. Parameters are float32 in both."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether torch.compile turns the step into one graph; auto compiles on CUDA only."""
    deterministic: bool = True
    """Whether CUDA may only use algorithms that repeat themselves to the last bit, as CPUs do anyway."""

    log_every: int = 10
    """Steps between lines of training metrics."""
    eval_every: int = 500
    """Steps between evaluations on the held-out samples."""
    eval_batch_size: int = 500
    """Images a batch of evaluation, over all processes."""
    save_every: int = 500
    """Steps between checkpoints. Only one that was evaluated can be the best: keep it a multiple of --eval-every."""
    keep: int = 2
    """How many of the latest checkpoints to keep."""
    keep_every: int | None = None
    """Keep every checkpoint whose step is a multiple of it besides."""
    best: Literal["top1", "top5", "loss"] = "top1"
    """Held-out metric of the best checkpoint, which is kept besides."""
    on_save_error: Literal["stop", "continue"] = "stop"
    """What to do when a checkpoint cannot be written, as on a full disk: stop the run, or warn and train on."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and field.name != "seed" and value < 1:
                raise InputError(f"--{field.name.replace('_', '-')} is {value}; it must be 1 or more")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"--clip is {self.clip}; it must be above 0, or None")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise InputError(f"--ema is {self.ema}; it must be at least 0 and below 1, or None")
        if self.keep_every is not None and self.keep_every < 1:
            raise InputError(f"--keep-every is {self.keep_every}; it must be 1 or more, or None")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"--label-smoothing is {self.label_smoothing}; it must be at least 0 and below 1")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed is {self.seed}; it must be at least 0 and below 2^63")

    def to_json(self) -> dict[str, Any]:
        """Plain data for `config.json`: a component is a dict of its name and its options."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for kind in COMPONENTS:
            chosen = values[kind]
            values[kind] = {"name": chosen.name, **dataclasses.asdict(chosen)}
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Experiment":
        """The experiment that `to_json` wrote, also after a round trip through text."""
        values = dict(values)
        for kind, by_name in COMPONENTS.items():
            options = {
                name: tuple(value) if isinstance(value, list) else value  # JSON has no tuples
                for name, value in values[kind].items()
            }
            values[kind] = by_name[options.pop("name")](**options)
        return cls(**values)
