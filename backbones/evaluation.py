"""Evaluation: which weights are evaluated, and their metrics over held-out samples."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

import backbones.distributed as distributed
import backbones.tree as tree
from backbones.augment import Normalize
from backbones.data import Batches, Source, eval_batches
from backbones.losses import cross_entropy
from backbones.metrics import in_top_k
from backbones.models import Model
from backbones.optim import evaluation_params
from backbones.train_step import TrainState
from backbones.types import Batch, ModelState, Params, Weights


class EvalSums(NamedTuple):
    """Sums over the rows of a batch, each times its weight; 0-D float64."""

    loss: Tensor
    """Cross-entropy in nats, without label smoothing."""
    top1: Tensor
    top5: Tensor
    weight: Tensor


EvalStep = Callable[[Params, ModelState, Batch], EvalSums]

UpdateBn = Callable[[Params, ModelState], ModelState]

WeightsOf = Callable[[TrainState], Weights]
"""The weights of a state that are evaluated: its parameters, or their average where the optimizer keeps one."""


class Evaluate(Protocol):
    """state -> `loss` (nats), `top1` and `top5` in [0, 1] of the held-out samples, each counted once over all ranks."""

    def __call__(self, state: TrainState, weights: Weights | None = None) -> dict[str, float]:
        """Evaluate `weights`; those of `state` if they are not given."""
        ...


def make_eval_step(model: Model, normalize: Normalize) -> EvalStep:
    """One batch of evaluation: `(params, model_state, batch) -> EvalSums`."""

    def eval_step(params: Params, model_state: ModelState, batch: Batch) -> EvalSums:
        logits, _ = model.apply(params, model_state, normalize(batch.images), train=False)
        rows = EvalSums(
            loss=cross_entropy(logits, batch.labels),
            top1=in_top_k(logits, batch.labels, 1),
            top5=in_top_k(logits, batch.labels, 5),
            weight=torch.ones_like(batch.weight),
        )
        return tree.map(lambda row: (row.to(torch.float64) * batch.weight).sum(), rows)

    return eval_step


NUM_BN_BATCHES = 50
"""Batches from which BatchNorm statistics are estimated. Running means of momentum 0.1 have then forgotten those that
they started from (0.9^50 = 0.005)."""


def make_update_bn(model: Model, normalize: Normalize, batches: Batches, jit: Callable[..., Any]) -> UpdateBn:
    """(params, model_state) -> the BatchNorm statistics of these parameters, over training images without augmentation.

    Averaged parameters need statistics of their own (Izmailov et al., arXiv 1803.05407, section 3.2).

    Args:
        model: the backbone.
        normalize: from pixels to what the model sees.
        batches: training batches.
        jit: compiles the forward pass, or does not.
    """

    @jit
    def forward(params: Params, model_state: ModelState, batch: Batch) -> ModelState:
        return model.apply(params, model_state, normalize(batch.images), train=True)[1]

    def update_bn(params: Params, model_state: ModelState) -> ModelState:
        if not model_state:
            return model_state
        for step in range(NUM_BN_BATCHES):
            model_state = forward(params, model_state, batches(step))
        return distributed.mean_over_ranks(model_state)

    return update_bn


def make_weights_of(update_bn: UpdateBn) -> WeightsOf:
    """The function that gives the weights of a state that are evaluated."""

    @torch.no_grad()
    def weights_of(state: TrainState) -> Weights:
        params = evaluation_params(state.opt_state, state.params)
        if params is state.params:
            return params, state.model_state
        return params, update_bn(params, state.model_state)

    return weights_of


def make_evaluate(
    eval_step: EvalStep, source: Source, weights_of: WeightsOf, *, batch_size: int, device: torch.device
) -> Evaluate:
    """The function that evaluates a state on all samples of a source.

    Args:
        eval_step: from `make_eval_step`.
        source: held-out samples.
        weights_of: from `make_weights_of`.
        batch_size: samples a batch, over all ranks.
        device: where the batches are wanted.
    """

    @torch.no_grad()
    def evaluate(state: TrainState, weights: Weights | None = None) -> dict[str, float]:
        params, model_state = weights or weights_of(state)
        batches = eval_batches(source, batch_size=batch_size, device=device)
        sums = [torch.stack(eval_step(params, model_state, batch)) for batch in batches]
        totals = EvalSums(*distributed.sum_over_ranks(torch.stack(sums).sum(dim=0)).tolist())
        return {name: value / totals.weight for name, value in totals._asdict().items() if name != "weight"}

    return evaluate
