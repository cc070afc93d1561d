"""The vocabulary: what flows between the rooms of this house."""

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

Params = dict[str, Tensor]
"""What is differentiated: dotted name -> tensor."""

ModelState = dict[str, Tensor]
"""What a forward pass updates (BatchNorm statistics): dotted name -> tensor."""

Updates = Params
"""What is added to `params`: gradients on their way through a chain of transforms."""

OptState = Any
"""What a gradient transform remembers: a NamedTuple of tensors, or of such NamedTuples."""

Metrics = dict[str, Tensor]
"""Name -> 0-D tensor."""


class Batch(NamedTuple):
    """B samples of one split, as they lie in the data set or as the model sees them."""

    images: Tensor
    """[B, C, H, W], uint8 in [0, 255]; float32 once normalised."""
    labels: Tensor
    """[B] int64 in [0, K); -1 marks a row that only fills the batch and counts for nothing."""
    index: Tensor
    """[B] int64, the sample's place in its split: what its random numbers are keyed by."""


class InputError(ValueError):
    """A mistake that only the user can mend. The message says what was got, what was wanted and what to do."""


def check_known(kind: str, name: str, names: Iterable[str]) -> str:
    """Give `name` back if it is one of `names`, else raise an InputError that offers the nearest of them."""
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(f"unknown {kind} {name!r}; {hint}There are: {', '.join(names)}")
    return name
