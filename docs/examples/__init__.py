"""What pure functions over trees are good for, each in less than 40 lines: see docs/torch_func.md.

Here is what they share: two small networks, what trains them, all images of a split, and their losses.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from backbones.augment import identity
from backbones.component import use
from backbones.data import Source, eval_batches
from backbones.experiment import Program
from backbones.losses import cross_entropy
from backbones.models.resnet import BasicBlock, resnet
from backbones.optim import adam, sgd
from backbones.optim.schedule import constant
from backbones.train_step import TrainState
from backbones.types import CPU, Batch, Params
from experiments.digits import digits_resnet18, digits_vit_tiny

resnet4 = partial(resnet, BasicBlock, (1,))
small_resnet = replace(digits_resnet18, name="ResNet", model=use(resnet4), device="cpu")
small_vit = replace(
    digits_vit_tiny,
    name="ViT",
    augment=use(identity),
    model=digits_vit_tiny.model.replace(width=64, depth=1, heads=4, mlp_width=128, dropout=0.0),
    optim=use(adam, lr=3e-3),
    schedule=use(constant),
    device="cpu",
)
plain_sgd = use(sgd, momentum=0.0, weight_decay=0.0)

Losses = Callable[[Params], Tensor]
"""params -> the loss of each of B images, [B], or one loss, 0-D."""


def train(program: Program, num_steps: int, batch: Batch | None = None) -> TrainState:
    """The state after this many steps, all on one batch if it is given."""
    state = program.state
    for step in range(num_steps):
        state, _ = program.train_step(state, batch or program.batches(step))
    return state


def whole(source: Source) -> Batch:
    """All images of a split."""
    return next(eval_batches(source, batch_size=source.size, device=CPU))


def make_losses(program: Program, state: TrainState, batch: Batch) -> Losses:
    """The losses of a batch. Parameters that are not given are those of the state."""

    def losses(params: Params) -> Tensor:
        logits = program.predict(state.params | params, state.model_state, batch.images)
        return cross_entropy(logits, batch.labels)

    return losses


def mean(losses: Losses) -> Losses:
    """The mean of the losses, 0-D."""
    return lambda params: losses(params).mean()
