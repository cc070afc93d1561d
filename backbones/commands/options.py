"""Options on the command line: components by name, and their options as those of the function that was chosen."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args, get_origin

import tyro
from typing_extensions import Doc
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

import backbones.distributed as distributed
from backbones.augment import AUGMENTS
from backbones.component import Option, Use, import_object, options_of
from backbones.data import DATASETS
from backbones.errors import check_known
from backbones.experiment import Experiment
from backbones.models import MODELS
from backbones.optim import OPTIMIZERS, SCHEDULES

T = TypeVar("T")

FUNCTIONS: dict[str, dict[str, Callable[..., Any]]] = {
    "data": DATASETS,
    "augment": AUGMENTS,
    "model": MODELS,
    "optim": OPTIMIZERS,
    "schedule": SCHEDULES,
}
"""Field of `Experiment` -> the functions that it can be by their short names."""


def find_function(kind: str, name: str) -> Callable[..., Any]:
    """The function that a component's name stands for.

    Args:
        kind: field of `Experiment`.
        name: a short name, or `module:function`.

    Raises:
        InputError: there is none; the message offers the nearest names.
    """
    return import_object(name) if ":" in name else FUNCTIONS[kind][check_known(kind, name, FUNCTIONS[kind])]


def read_options(command: T, args: Sequence[str], *, prog: str, description: str) -> T:
    """Read the options of a dataclass, whose experiments and components have the options of what they hold.

    Args:
        command: the defaults.
        args: a command line.
        prog: name of the program, for `--help`.
        description: likewise.

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
        return _spec(lambda **values: Use(default.function, **values), options_of(default.function), default.values)
    if isinstance(default, Experiment):
        return _spec(Experiment, options_of(Experiment, given=()), vars(default))
    return None


def _spec(make: Callable[..., Any], options: dict[str, Option], values: Mapping[str, Any]) -> StructConstructorSpec:
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
