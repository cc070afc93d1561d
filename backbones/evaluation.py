"""Evaluation: which weights are evaluated, and their metrics over held-out samples."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

import backbones.distributed as distributed
import backbones.random as random
import backbones.tree as tree
from backbones.augment import Normalize
from backbones.data import Batches, Source, eval_batches
from backbones.losses import Loss, cross_entropy
from backbones.metrics import in_top_k
from backbones.models import Model
from backbones.optim import evaluation_params
from backbones.random import Stream
from backbones.train_step import TrainState
from backbones.tta import Tta, average_views
from backbones.types import Batch, ModelState, Params, Weights

NUM_BN_BATCHES = 50
"""Batches over which BatchNorm statistics of averaged parameters are taken."""


class EvalSums(NamedTuple):
    """Sums over the rows of a batch, each times its weight; 0-D float64."""

    loss: Tensor
    """In nats, without label smoothing and class weights."""
    top1: Tensor
    top5: Tensor
    weight: Tensor


EvalStep = Callable[[Params, ModelState, Batch], EvalSums]

WeightsOf = Callable[[TrainState], Weights]
"""The weights of a state that are evaluated: its parameters, or their average where the optimizer keeps one."""

PredictFn = Callable[[Params, ModelState, Tensor], Tensor]
"""(params, model_state, images [B, C, H, W] in [0, 255]) -> logits [B, K], in evaluation mode."""


class Evaluate(Protocol):
    """state -> `loss` (nats), `top1` and `top5` in [0, 1] of the held-out samples, each counted once over all ranks.

    `weights` are evaluated; those of the state if they are not given.
    """

    def __call__(self, state: TrainState, weights: Weights | None = None) -> dict[str, float]: ...


def make_eval_step(model: Model, normalize: Normalize, *, loss: Loss = cross_entropy, tta: Tta = "none") -> EvalStep:
    """One batch of evaluation: `(params, model_state, batch) -> EvalSums`."""

    def eval_step(params: Params, model_state: ModelState, batch: Batch) -> EvalSums:
        def apply(images: Tensor) -> Tensor:
            return model.apply(params, model_state, images, train=False)[0]

        logits = average_views(apply, normalize(batch.images), tta)
        rows = EvalSums(
            loss=loss(logits, batch.labels, targets=None, label_smoothing=0.0),
            top1=in_top_k(logits, batch.labels, 1),
            top5=in_top_k(logits, batch.labels, 5),
            weight=torch.ones_like(batch.weight),
        )
        return tree.map(lambda row: (row.to(torch.float64) * batch.weight).sum(), rows)

    return eval_step


def make_predict(model: Model, normalize: Normalize) -> PredictFn:
    """The logits of images, as a pure function that every transform of torch.func takes, eager.

    Attention is not fused in it: torch has no second derivative of fused attention, and on CPUs no rule to vmap it.
    """

    def predict(params: Params, model_state: ModelState, images: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return model.apply(params, model_state, normalize(images), train=False)[0]

    return predict


def make_weights_of(model: Model, normalize: Normalize, batches: Batches, jit: Callable[..., Any]) -> WeightsOf:
    """The function from a state to the weights that are evaluated.

    Averaged parameters get BatchNorm statistics of their own, by `update_bn` over `batches`, training images without
    augmentation. `jit` compiles the forward pass, or does not.
    """
    norms = {
        name: norm
        for name, norm in model.skeleton.named_modules()
        if isinstance(norm, _BatchNorm) and norm.track_running_stats
    }

    @jit
    def forward(params: Params, model_state: ModelState, batch: Batch) -> ModelState:
        return model.apply(params, model_state, normalize(batch.images), train=True)[1]

    @torch.no_grad()
    def weights_of(state: TrainState) -> Weights:
        params, model_state = evaluation_params(state.opt_state, state.params), state.model_state
        if params is state.params or not model_state:
            return params, model_state

        def apply(model_state: ModelState, step: int) -> ModelState:
            random.seed_torch(0, Stream.DROPOUT, step, distributed.rank())  # the same dropout each time
            return forward(params, model_state, batches(step))

        return params, update_bn(norms, apply, model_state)

    return weights_of


def update_bn(
    norms: Mapping[str, _BatchNorm], apply: Callable[[ModelState, int], ModelState], model_state: ModelState
) -> ModelState:
    """BatchNorm statistics anew: means over `NUM_BN_BATCHES` batches and all ranks (arXiv 1803.05407, section 3.2).

    Args:
        norms: name -> each BatchNorm that keeps running statistics.
        apply: (model_state, step) -> the model state after a forward pass, in training mode, over the batch of a step.
        model_state: as it was; leaves that training does not change stay as they are.
    """
    new = apply(model_state, 0)
    changed = {name for name, leaf in model_state.items() if not torch.equal(leaf, new[name])}
    if not changed:
        return model_state  # these are not statistics, but a table of positions, say
    leaves = ("running_mean", "running_var")
    momenta = {f"{name}.{leaf}": norm.momentum for name, norm in norms.items() if norm.momentum for leaf in leaves}
    # Starting from zeros, a norm that is applied once writes its momentum times the statistics of the batch.
    totals = zeros = {name: torch.zeros_like(model_state[name]) for name in momenta if name in changed}
    num_applied: dict[str, list[Tensor]] = {_count_of(name): [] for name in zeros if _count_of(name) in model_state}
    # A norm without a momentum keeps means over all that it has counted: it counts from 0 again, unless it is frozen.
    counts = {f"{name}.num_batches_tracked" for name, norm in norms.items() if norm.momentum is None} & changed
    model_state = {**model_state, **{name: torch.zeros_like(model_state[name]) for name in counts}}
    for step in range(NUM_BN_BATCHES):
        before, model_state = model_state, apply({**model_state, **zeros}, step)
        totals = {name: total + model_state[name] for name, total in totals.items()}
        for count, numbers in num_applied.items():
            numbers.append(model_state[count] - before[count])
    means = {
        name: total / _total_weight(momenta[name], num_applied.get(_count_of(name), ()))
        for name, total in totals.items()
    }
    return distributed.mean_over_ranks({**model_state, **means})


def _count_of(running_statistic: str) -> str:
    """Name of the leaf that counts how often a norm was applied in training mode."""
    return f"{running_statistic.rpartition('.')[0]}.num_batches_tracked"


def _total_weight(momentum: float, num_applied: Sequence[Tensor]) -> float:
    """Sum over the batches of 1 - (1 - momentum)^n, the weight of a batch on which a norm was applied n times.

    `num_applied` has the n of each batch, 0-D; it is empty, or all zeros, for a norm that does not count: then n is 1.
    """
    weights = [momentum if n == 1 else 1 - (1 - momentum) ** n for n in (round(each.item()) for each in num_applied)]
    return math.fsum(weights) or momentum * NUM_BN_BATCHES


def make_evaluate(
    eval_step: EvalStep, source: Source, weights_of: WeightsOf, *, batch_size: int, device: torch.device
) -> Evaluate:
    """The function that evaluates a state on all samples of a source, in batches of `batch_size` over all ranks."""

    @torch.no_grad()
    def evaluate(state: TrainState, weights: Weights | None = None) -> dict[str, float]:
        params, model_state = weights or weights_of(state)
        batches = eval_batches(source, batch_size=batch_size, device=device)
        sums = [torch.stack(eval_step(params, model_state, batch)) for batch in batches]
        totals = EvalSums(*distributed.sum_over_ranks(torch.stack(sums).sum(dim=0)).tolist())
        return {name: value / totals.weight for name, value in totals._asdict().items() if name != "weight"}

    return evaluate
