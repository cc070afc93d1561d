"""Mistakes of the user: one exception for all of them."""

import difflib
import re
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """A mistake of the user. The message says what was got, what was wanted and what to do."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch could not get memory, of a GPU or of the machine."""
    return isinstance(error, RuntimeError) and bool(re.search("can't allocate memory|out of memory", str(error)))


def first_line(error: BaseException) -> str:
    """The first line of the message of an error, or its type where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def check_known(kind: str, name: str, names: Iterable[str]) -> str:
    """Give `name` back if it is one of `names`, else raise an InputError that offers the nearest of them."""
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(f"unknown {kind} {name!r}; {hint}There are: {shorten(names, 80)}")
    return name


def shorten(names: Sequence[str], most: int = 8) -> str:
    """The first few of many names, for a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} others" if len(names) > most else "")
