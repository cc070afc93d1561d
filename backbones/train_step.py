"""The heart: (state, batch) -> (state, metrics), pure, to be compiled as a whole."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import backbones.optim as optim
import backbones.random as random
import backbones.tree as tree
from backbones.augment import normalize
from backbones.distributed import GradAndValue, LossFn
from backbones.losses import cross_entropy
from backbones.metrics import in_top_k
from backbones.models import Model
from backbones.types import Batch, Metrics, ModelState, OptState, Params


class TrainState(NamedTuple):
    """All that training remembers, and nothing but tensors: this is the checkpoint."""

    step: Tensor
    """Steps done, 0-D int64."""
    key: Tensor
    """Random key of the run, 0-D int64; never changes."""
    params: Params
    model_state: ModelState
    opt_state: OptState


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class EvalSums(NamedTuple):
    """Sums over the rows of a batch whose label is not -1; 0-D float64."""

    loss: Tensor
    """Cross-entropy in nats, without label smoothing."""
    top1: Tensor
    top5: Tensor
    count: Tensor


EvalStep = Callable[[Params, ModelState, Batch], EvalSums]

ModelStateStep = Callable[[Params, ModelState, Batch], ModelState]


def init_train_state(
    model: Model, optimizer: optim.GradientTransformation, *, seed: int, device: torch.device
) -> TrainState:
    """The state before the first step, on `device`; a function of the seed alone."""
    params, model_state = tree.map(lambda leaf: leaf.to(device), model.init(random.generator(seed, 0)))
    step = torch.zeros((), dtype=torch.int64, device=device)
    return TrainState(step, random.key(seed, device=device), params, model_state, optimizer.init(params))


def make_loss_fn(model: Model, *, label_smoothing: float) -> LossFn:
    """The pure function that is differentiated: `(params, model_state, batch) -> (loss, (model_state, metrics))`.

    Args:
        model: the backbone.
        label_smoothing: see `losses.cross_entropy`.
    """

    def loss_fn(params: Params, model_state: ModelState, batch: Batch) -> tuple[Tensor, tuple[ModelState, Metrics]]:
        logits, model_state = model.apply(params, model_state, batch.images, train=True)
        loss = cross_entropy(logits, batch.labels, label_smoothing=label_smoothing).mean()
        accuracy = in_top_k(logits, batch.labels, 1).to(torch.float32).mean()
        return loss, (model_state, {"accuracy": accuracy})

    return loss_fn


def make_train_step(
    grad_and_value: GradAndValue,
    update: optim.Update,
    *,
    augment: Callable[[Tensor, Tensor], Tensor],
    mean: Tensor,
    std: Tensor,
    accumulate: int = 1,
    skip_nonfinite: bool = False,
) -> TrainStep:
    """One step of training: augmented batch -> gradients -> updates -> the next state.

    The step that is returned donates its state: when compiled, the new one lies in the memory of the old one, which
    must not be used again. Its metrics are `loss`, `accuracy` (of the augmented batch), the norms `grad_norm` and
    `update_norm` (before and after the optimizer) and `param_norm` (after the step), `learning_rate`, and `nonfinite`
    (1 if one of the loss and the first two norms is not finite, else 0).

    Args:
        grad_and_value: from `distributed.grad_and_value`.
        update: from `optim.make_update`, or that `donating` the state and the parameters, unless `skip_nonfinite`.
        augment: `(keys [B] int64, images uint8) -> images uint8`.
        mean: [C], of the images.
        std: [C], of the images.
        accumulate: micro-batches that the batch is cut into; divides the batch of each process.
        skip_nonfinite: leave all but the step as it is after a step that is `nonfinite`.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = random.fold_in(random.fold_in(state.key, state.step), batch.index)
        batch = batch._replace(images=normalize(augment(keys, batch.images), mean, std))
        micro_batches = [Batch(*parts) for parts in zip(*(leaf.chunk(accumulate) for leaf in batch), strict=True)]

        grads, (loss, (model_state, metrics)) = grad_and_value(state.params, state.model_state, micro_batches)
        climbed = optim.climb(state.opt_state, state.params, grads)
        if climbed is not None:  # sharpness-aware minimization: the gradient from there, and nothing else
            grads, _ = grad_and_value(climbed, state.model_state, micro_batches)
        params, opt_state, update_norm = update(grads, state.opt_state, state.params)
        new_state = TrainState(state.step + 1, state.key, params, model_state, opt_state)

        grad_norm = tree.global_norm(grads)
        finite = torch.isfinite(loss) & torch.isfinite(grad_norm) & torch.isfinite(update_norm)
        if skip_nonfinite:
            new_state = tree.where(finite, new_state, state)._replace(step=state.step + 1)  # onward, to another batch
        metrics |= {
            "loss": loss,
            "grad_norm": grad_norm,
            "update_norm": update_norm,
            "param_norm": tree.global_norm(params),
            "learning_rate": tree.find(opt_state, optim.ScaleByLearningRateState)[0].learning_rate,
            "nonfinite": (~finite).to(torch.int64),
        }
        return tree.donate(state, new_state), metrics

    return train_step


def make_model_state_step(model: Model, *, mean: Tensor, std: Tensor) -> ModelStateStep:
    """A forward pass in training mode for what it leaves behind: `(params, model_state, batch) -> model_state`.

    Args:
        model: the backbone.
        mean: [C], of the training images.
        std: [C], of the training images.
    """

    def model_state_step(params: Params, model_state: ModelState, batch: Batch) -> ModelState:
        _, model_state = model.apply(params, model_state, normalize(batch.images, mean, std), train=True)
        return model_state

    return model_state_step


def make_eval_step(model: Model, *, mean: Tensor, std: Tensor) -> EvalStep:
    """One batch of evaluation: `(params, model_state, batch) -> EvalSums`.

    Args:
        model: the backbone.
        mean: [C], of the training images.
        std: [C], of the training images.
    """

    def eval_step(params: Params, model_state: ModelState, batch: Batch) -> EvalSums:
        logits, _ = model.apply(params, model_state, normalize(batch.images, mean, std), train=False)
        rows = EvalSums(
            loss=cross_entropy(logits, batch.labels),
            top1=in_top_k(logits, batch.labels, 1),
            top5=in_top_k(logits, batch.labels, 5),
            count=batch.labels >= 0,
        )
        return tree.map(lambda row: row.to(torch.float64).sum(), rows)

    return eval_step
