"""The types that flow between the parts of a training."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

CPU = torch.device("cpu")

Params = dict[str, Tensor]
"""What is differentiated: dotted name -> tensor."""

ModelState = dict[str, Tensor]
"""What a forward pass updates (BatchNorm statistics): dotted name -> tensor."""

Weights = tuple[Params, ModelState]
"""What a forward pass needs."""

Updates = Params
"""What is added to `params`: gradients on their way through a chain of transforms."""

OptState = Any
"""The state of a gradient transform: a tree of tensors, made of dicts, tuples and NamedTuples."""

Metrics = dict[str, Tensor]
"""Name -> 0-D tensor."""


class Batch(NamedTuple):
    """B samples of one split, as the data set holds them or as the model sees them."""

    images: Tensor
    """[B, C, H, W], uint8 in [0, 255]; float32 once normalized."""
    labels: Tensor
    """[B] int64 in [0, K)."""
    targets: Tensor | None
    """[B, K] float32, class probabilities, where an augmentation mixes samples; None where `labels` are the target."""
    weight: Tensor
    """[B] float32, of each sample in the loss and in metrics; 0 for a row that only pads the batch."""
    index: Tensor  # type: ignore[assignment]  # tuple.index is not needed
    """[B] int64, of the sample in its split: its random numbers are keyed by it and `epoch`."""
    epoch: Tensor
    """[B] int64, how often the run has drawn the sample before; 0 in evaluation."""


Part = Literal["stem", "trunk", "head"]
"""Stem: what comes before the first stage or block. Head: what turns the pooled vector into logits."""

Kind = Literal["matrix", "bias", "norm", "scale", "embedding"]
"""Matrix: weight of a linear layer or a convolution. Bias: of any layer but a norm. Norm: weight or bias of a norm.
Scale: a factor for each channel, such as a layer scale. Embedding: class token, position embedding, lookup table."""


class Role(NamedTuple):
    """What a parameter is in its network. Optimizers and fine-tuning choose leaves by it, not by names of layers."""

    part: Part
    kind: Kind
    depth: int
    """Number of the layer, for learning rates that differ by layer: 0 for the stem, then the blocks (or stages) from
    the image on, and last the head and any layers between the blocks and it."""


Roles = dict[str, Role]
"""Dotted name -> role, for each leaf of `params`."""
