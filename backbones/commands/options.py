"""Options on the command line: components by name, and the options of the functions that were chosen."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import torch
import tyro
from typing_extensions import Doc
from tyro.conf import Positional
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

import backbones.distributed as distributed
from backbones.augment import AUGMENTS
from backbones.component import Option, Use, import_object, options_of, use
from backbones.data import DATASETS, Dataset
from backbones.data.source import check_splits
from backbones.errors import InputError, check_known
from backbones.experiment import Experiment, make_dataset
from backbones.losses import LOSSES
from backbones.models import LIBRARIES, MODELS
from backbones.optim import OPTIMIZERS, SCHEDULES
from backbones.ranges import check_values, checked, is_of_any_length

T = TypeVar("T")

# Types of arguments that several commands have.
RunPath = Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
FeaturesPath = Annotated[Positional[Path], tyro.conf.arg(metavar="FEATURES")]
ImagePaths = Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE [IMAGE ...]")]
CheckpointName = Annotated[str, tyro.conf.arg(metavar="latest|best|STEP")]
DeviceName = Literal["auto", "cpu", "cuda"]
DataRoot = Annotated[str | None, tyro.conf.arg(name="data.root", metavar="FOLDER|FILE")]

checked_options = partial(checked, prefix="--")
"""Decorator: each call of a command checks its options against the ranges in their annotations."""


def check_options(command: Any) -> None:
    """Raise InputError for an option of a command, a dataclass, that is out of the range in its annotation."""
    annotations = {field.name: field.type for field in dataclasses.fields(command)}
    check_values(annotations, vars(command), prefix="--")


AT_ONCE = 16
"""Image files that a command without --batch-size gives to the model at once."""

FUNCTIONS: dict[str, dict[str, Callable[..., Any]]] = {
    "data": DATASETS,
    "augment": AUGMENTS,
    "model": {**MODELS, **LIBRARIES},
    "optim": OPTIMIZERS,
    "schedule": SCHEDULES,
    "loss": LOSSES,
}
"""Field of `Experiment` -> short name -> function."""


def given_options(args: Sequence[str]) -> list[str]:
    """The options in a command line, in their order and by name, as `optim.weight_decay`."""
    return [arg.partition("=")[0].removeprefix("--").replace("-", "_") for arg in args if arg.startswith("--")]


def check_given_once(args: Sequence[str], annotations: Mapping[str, Any]) -> None:
    """Raise InputError for an option of several values that is given twice: only the last values would count.

    Args:
        args: a command line.
        annotations: option -> type.
    """
    given = given_options(args)
    for name, annotation in annotations.items():
        if given.count(name) > 1 and is_of_any_length(annotation):
            raise InputError(f"--{name.replace('_', '-')} is given twice; give all its values after one")


def find_object(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    """The object with a short name, or at `module:name`; the InputError for an unknown name offers the nearest ones."""
    if ":" in name:
        return import_object(name)
    return known[check_known(kind, name, known)]


def find_experiment(name: str, known: Mapping[str, Experiment] | None = None) -> Experiment:
    """The experiment with a short name, or at `module:name`.

    If none are `known`, short names are those of `EXPERIMENTS` in the package `experiments`.

    Raises:
        InputError: there is no such experiment.
    """
    if not known and ":" not in name:
        try:
            known = import_object("experiments:EXPERIMENTS")
        except InputError as error:
            raise InputError(
                f"name the experiment as module:name, not {name}; short names are those of EXPERIMENTS in the package "
                "experiments, which is not installed"
            ) from error
    found = find_object("experiment", name, known or {})
    if not isinstance(found, Experiment):
        raise InputError(f"{name} is a {type(found).__name__}; wanted an Experiment")
    return found


def read_dataset(name: str | None, own: Use, device: torch.device, root: str | None = None) -> tuple[str, Dataset]:
    """A data set and its name: `own`, or another by its short name or at `module:name`; `root` is where it is now.

    The other one gets the options of `own`, such as its root, that it has too, of the same type, with the same default
    or none. Training images are not cropped at random: the center is taken instead.

    Raises:
        InputError: there is no such data set, it cannot be read, its splits differ, or a label is not a class.
    """
    if name is not None:
        function = find_object("data", name, DATASETS)
        known = options_of(own.function)
        shared = [
            key
            for key, option in options_of(function).items()
            if key in own.values and option.annotation == known[key].annotation
            if option.default in (known[key].default, inspect.Parameter.empty)
        ]
        own = use(function, **{key: own.values[key] for key in shared})
    if own.values.get("crop") == "random":
        others = {key: value for key, value in own.options.items() if key != "smallest"}  # which is for random crops
        own = use(own.function, **{**others, "crop": "center"})
    dataset = make_dataset(own, device, root)
    check_splits(dataset)
    return own.name, dataset


def choose_by_name(args: Sequence[str], components: Mapping[str, Use]) -> tuple[dict[str, Use], list[str]]:
    """Kind -> component, after `--KIND NAME`, `--KIND=NAME` and `--KIND module:name`; and the other arguments.

    A component that is named again keeps its options.
    """
    chosen, others = {**components}, []
    remaining = iter(args)
    for arg in remaining:
        kind, equals, name = arg.removeprefix("--").partition("=")
        if arg.startswith("--") and kind in components:
            function = find_object(kind, name if equals else next(remaining, ""), FUNCTIONS[kind])
            chosen[kind] = components[kind] if function == components[kind].function else use(function)
        else:
            others.append(arg)
    return chosen, others


def read_options(command: T, args: Sequence[str], *, prog: str, description: str) -> T:
    """Read the options of a dataclass, including those of the experiment and components in it; defaults are `command`.

    Raises:
        SystemExit: tyro has printed help or what is wrong with the options.
    """
    return tyro.cli(
        type(command),
        default=command,
        args=args,
        prog=prog,
        description=description,
        console_outputs=distributed.is_main(),
        registry=_REGISTRY,
    )


_REGISTRY = ConstructorRegistry()


@_REGISTRY.struct_rule
def _rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    default: Any = info.default
    if isinstance(default, Use):
        return _spec(partial(Use, default.function), options_of(default.function), default.values)
    if isinstance(default, Experiment):
        return _spec(Experiment, options_of(Experiment, given=()), vars(default))
    return None


def _spec(make: Callable[..., Any], options: Mapping[str, Option], values: Mapping[str, Any]) -> StructConstructorSpec:
    fields = []
    for name, option in options.items():
        value, annotation = values[name], option.annotation
        if value is inspect.Parameter.empty:
            value = tyro.MISSING
        if annotation is inspect.Parameter.empty:  # of a user's function
            annotation = str if value is tyro.MISSING else type(value)
        if get_origin(annotation) is Annotated:  # else tyro would show a Doc in the place of our help
            base, *metadata = get_args(annotation)
            others = [each for each in metadata if not isinstance(each, Doc)]
            annotation = Annotated[(base, *others)] if others else base
        fields.append(StructFieldSpec(name=name, type=annotation, default=value, helptext=option.help))
    return StructConstructorSpec(make, tuple(fields))
