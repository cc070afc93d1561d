"""`use(function, **options)`: a function with its options filled in, as a value.

It is what an experiment is made of: it compares, prints, is replaced, and is stored as the import path of its function
and the value of every option, so that a function of the user's own file needs no registering.
"""

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import docstring_parser
from typing_extensions import Doc

from backbones.errors import InputError, check_known
from backbones.ranges import check_values, range_of

GIVEN = ("image_shape", "num_classes", "schedule", "num_steps", "decays", "hidden", "device")
"""Parameters that the experiment gives, by name, to the functions that have them; all others are options."""

GIVEN_TO_LOSSES = ("logits", "labels", "targets", "label_smoothing")
"""Parameters that the experiment gives to a loss; a function that has all of them is a loss."""


class Option(NamedTuple):
    """An option of a function."""

    annotation: Any
    default: Any
    """`inspect.Parameter.empty` if it must be given."""
    help: str
    """From the docstring or the `Doc` of its annotation, with its range."""


class Use:
    """A function with options, as a value: `use(adam, lr=1e-3)`. Options that are not given have their defaults.

    The function is a function, a class, or a `functools.partial` of one, that a module holds under a name.

    Raises:
        InputError: it is not a function, or has no such option; or a value is out of its range, or cannot be stored as
            JSON.
    """

    def __init__(self, function: Callable[..., Any], /, **options: Any) -> None:
        if not callable(function):
            raise InputError(f"{function!r} is not a function; wanted one that makes a part of an experiment")
        self.function, self.options = function, options
        known = options_of(function)
        for name in options:
            if name in GIVEN and name in inspect.signature(function).parameters:
                raise InputError(f"{name} of {self.name} is given by the experiment; rename that parameter")
            check_known(f"option of {self.name}", name, known)
        check_values({name: option.annotation for name, option in known.items()}, options, prefix=f"{self.name}.")
        for name, value in self.values.items():
            if value is not inspect.Parameter.empty and not is_plain(value):
                raise InputError(
                    f"{self.name}.{name} is {value!r}; it must be a number, a string, a bool, None, or a tuple or "
                    "dict of such: write a function that takes a name for it"
                )

    @property
    def path(self) -> str:
        """Where the function is imported from, as `package.module:name`."""
        return import_path(self.function)

    @property
    def name(self) -> str:
        """Short name: that of the function, with dashes, as the command line has it."""
        return self.path.partition(":")[2].replace("_", "-")

    @property
    def label(self) -> str:
        """Name for tables: that of the architecture, where the function has such an option, else the short name."""
        return self.values.get("architecture") or self.name

    @property
    def defaults(self) -> dict[str, Any]:
        """Option -> default; `inspect.Parameter.empty` if it must be given."""
        return {name: option.default for name, option in options_of(self.function).items()}

    @property
    def values(self) -> dict[str, Any]:
        """Option -> value, defaults included."""
        return {**self.defaults, **self.options}

    def bind(self, **given: Any) -> Callable[[], Any]:
        """The call with these options, and with those parameters of `GIVEN` that the function has.

        Raises:
            InputError: an option without a default has no value.
        """
        parameters = inspect.signature(self.function).parameters
        missing = [
            name
            for name, parameter in parameters.items()
            if parameter.default is inspect.Parameter.empty and name not in {**given, **self.options}
            if name in GIVEN or name in self.values
        ]
        if missing:
            raise InputError(f"{self.name} needs a value for {', '.join(missing)}")
        return partial(self.function, **{key: given[key] for key in given if key in parameters}, **self.options)

    def make(self, **given: Any) -> Any:
        """Call the function; see `bind`."""
        return self.bind(**given)()

    def replace(self, **options: Any) -> "Use":
        """The same with other values of some options."""
        return Use(self.function, **{**self.options, **options})

    def to_json(self) -> dict[str, Any]:
        """Plain data: the import path and every option."""
        return {"function": self.path, "options": self.values}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Use":
        """What `to_json` wrote, also after a round trip through text.

        Raises:
            InputError: the function cannot be imported, or has no such option any more.
        """
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in values["options"].items()}
        return cls(import_object(values["function"]), **options)

    def __reduce__(self) -> tuple[Callable[..., "Use"], tuple[dict[str, Any]]]:
        """Pickled by its import path too: a copy of a `functools.partial` would be in no module."""
        return Use.from_json, ({"function": self.path, "options": self.options},)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Use) and _canonical(self) == _canonical(other)

    def __hash__(self) -> int:
        return hash(_canonical(self))

    def __repr__(self) -> str:
        shown = [self.path.partition(":")[2], *(f"{name}={value!r}" for name, value in self.options.items())]
        return f"use({', '.join(shown)})"


def is_plain(value: Any) -> bool:
    """Whether a value can be stored as JSON, where a tuple becomes a list."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(is_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str)


def _canonical(component: Use) -> str:
    return json.dumps(component.to_json(), default=repr)


use = Use
"""As a verb, for those who write experiments."""


@cache  # an experiment asks a dozen times, and there are many experiments
def options_of(function: Callable[..., Any], given: tuple[str, ...] = GIVEN) -> Mapping[str, Option]:
    """Name -> option, of all parameters but those that are given.

    Args:
        function: documents its options under `Args:` (a dataclass: each below its field), or by a `Doc` in their
            annotations.
        given: names of parameters that are not options.
    """
    documented = function.func if isinstance(function, partial) else function
    parsed = docstring_parser.parse_from_object(documented) if documented.__doc__ else None
    helps = {param.arg_name: param.description for param in parsed.params} if parsed else {}
    try:
        parameters = inspect.signature(function, eval_str=True).parameters  # `from __future__ import annotations`
    except NameError:  # a name that only type checkers import
        parameters = inspect.signature(function).parameters
    except ValueError as error:  # of a builtin
        raise InputError(f"{function!r} has no signature; call it in a function of your own") from error
    options = {}
    if set(GIVEN_TO_LOSSES) <= parameters.keys():
        given += GIVEN_TO_LOSSES
    for name, parameter in parameters.items():
        if name in given or parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        annotation = inspect.Parameter.empty if isinstance(parameter.annotation, str) else parameter.annotation
        docs = [each.documentation for each in get_args(annotation) if isinstance(each, Doc)]
        interval = range_of(annotation)
        help = " ".join((helps.get(name) or " ".join(docs)).split()).rstrip(".")
        options[name] = Option(annotation, parameter.default, f"{help}; {interval}" if interval else help)
    return options


def import_path(function: Callable[..., Any]) -> str:
    """Where a module holds this very object, as `package.module:name`.

    Raises:
        InputError: no module holds it under a name, as for a lambda or a function inside a function.
    """
    owner = function.func if isinstance(function, partial) else function
    defined_in = str(getattr(owner, "__module__", ""))
    for module_name in _module_names(defined_in):
        names = getattr(sys.modules.get(module_name), "__dict__", {})
        for name in (getattr(function, "__name__", ""), *names):
            if names.get(name) is function:
                return f"{_importable(module_name)}:{name}"
    raise InputError(f"{function!r} is not at the top level of a module; define it there under a name")


def _module_names(first: str) -> Iterator[str]:
    """All modules, that one first: it nearly always has the object, and sorting the others takes time."""
    yield first
    yield from sorted(sys.modules)


def _importable(module_name: str) -> str:
    """The name under which the script that runs can be imported."""
    if module_name != "__main__":
        return module_name
    main = sys.modules["__main__"]
    return main.__spec__.name if main.__spec__ else Path(getattr(main, "__file__", "") or "__main__").stem


def import_object(path: str) -> Any:
    """The object at `package.module:name`; modules of the working directory are found too.

    Raises:
        InputError: there is no such module or object.
    """
    module_name, _, name = path.partition(":")
    if not all(module_name.split(".")) or "/" in module_name or module_name.endswith(".py"):
        raise InputError(f"{module_name!r} in {path} is not a module name; for my/file.py write my.file")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not module_name.startswith(error.name or module_name):
            raise
        raise InputError(
            f"cannot import {path}: there is no module {error.name!r}; run from the folder that holds it, or install it"
        ) from error
    if not hasattr(module, name):
        where = getattr(module, "__file__", None) or module_name
        raise InputError(f"cannot import {path}: {where} has no {name!r}")
    return getattr(module, name)
