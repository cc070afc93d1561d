"""The vocabulary: what flows between the rooms of this house."""

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
