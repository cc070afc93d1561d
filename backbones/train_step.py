"""The train step: (state, batch) -> (state, metrics), pure, eager or compiled as a whole."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import backbones.distributed as distributed
import backbones.optim as optim
import backbones.random as random
import backbones.tree as tree
from backbones.augment import Augment, Normalize
from backbones.errors import InputError
from backbones.gradient import GradAndValue, LossFn, phase
from backbones.losses import Loss, cross_entropy
from backbones.metrics import in_top_k
from backbones.models import Model
from backbones.random import Stream
from backbones.types import Batch, Metrics, ModelState, OptState, Params, Updates


class TrainState(NamedTuple):
    """The whole state of a training, and nothing but tensors: this is the checkpoint."""

    step: Tensor
    """Steps done, 0-D int64."""
    key: Tensor
    """Random key of the run, 0-D int64; never changes."""
    params: Params
    model_state: ModelState
    opt_state: OptState


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_train_state(
    model: Model,
    optimizer: optim.GradientTransformation,
    *,
    seed: int,
    device: torch.device,
    images: Tensor | None = None,
) -> TrainState:
    """The state before the first step, on `device`; a function of the seed and the images. No two leaves share memory.

    Args:
        model: what is trained.
        optimizer: what trains it.
        seed: of `model.init`.
        device: where the state is kept.
        images: [N, C, H, W] float32 normalized training images, for a model that has `init_from_images`.

    Raises:
        InputError: the optimizer's state is not a tree of tensors.
    """
    params, model_state = tree.map(lambda leaf: leaf.to(device), model.init(random.generator(seed, Stream.INIT)))
    if model.init_from_images is not None and images is not None:
        params, model_state = model.init_from_images(params, model_state, images)
    opt_state = optimizer.init(params)
    for path, leaf in tree.named_leaves(opt_state).items():
        if not isinstance(leaf, Tensor):
            raise InputError(
                f"opt_state/{path} of the optimizer is {leaf!r}, of type {type(leaf).__name__}; the state of a "
                "transform may hold tensors only, such as torch.zeros((), dtype=torch.int64)"
            )
    step = torch.zeros((), dtype=torch.int64, device=device)
    return tree.with_own_memory(TrainState(step, random.key(seed, device=device), params, model_state, opt_state))


def make_loss_fn(
    model: Model, *, label_smoothing: float, loss: Loss = cross_entropy, class_weights: Tensor | None = None
) -> LossFn:
    """The pure function that is differentiated: `(params, model_state, batch) -> (loss, (model_state, metrics))`.

    It is the mean over the batch of each sample's loss times its weight. With `class_weights` [K] the weight is
    multiplied by that of the sample's class, or by the mean of those of its classes where targets are mixed.
    """

    def weight_of(batch: Batch) -> Tensor:
        if class_weights is None:
            return batch.weight
        of_class = class_weights[batch.labels] if batch.targets is None else batch.targets @ class_weights
        return batch.weight * of_class

    def loss_fn(params: Params, model_state: ModelState, batch: Batch) -> tuple[Tensor, tuple[ModelState, Metrics]]:
        logits, model_state = model.apply(params, model_state, batch.images, train=True)
        losses = loss(logits, batch.labels, targets=batch.targets, label_smoothing=label_smoothing)
        accuracy = in_top_k(logits, batch.labels, 1).to(torch.float32).mean()
        return (losses * weight_of(batch)).mean(), (model_state, {"accuracy": accuracy})

    return loss_fn


def make_train_step(
    grad_and_value: GradAndValue,
    optimizer: optim.GradientTransformation,
    *,
    augment: Augment,
    normalize: Normalize,
    accumulate: int = 1,
    skip_nonfinite: bool = False,
) -> TrainStep:
    """One step of training: augmented batch -> gradients -> updates -> the next state.

    Its metrics are `loss`, `accuracy` (of the augmented batch), the norms `grad_norm` and `update_norm` (before and
    after the optimizer) and `param_norm` (after the step), `learning_rate` where the optimizer has one, `nonfinite`
    (1 if one of the loss and the first two norms is not finite, else 0), and of several micro-batches or ranks what
    `with_noise_scale` needs, `grad_sq_norm` and `grad_variance`.

    The batch of each process is cut into `accumulate` equal micro-batches. With `skip_nonfinite`, a step that is
    `nonfinite` leaves the state as it is, but for the step count.
    """
    update = optim.with_grad_fn(optimizer.update)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with phase("augment"):
            batch = augment(random.sample_keys(state.key, state.step, batch.index, batch.epoch), batch)
            check_augmented(batch, accumulate)
            batch = batch._replace(images=normalize(batch.images))
        size = len(batch.images) // accumulate
        micro_batches = [tree.map(lambda leaf, i=i: leaf[i * size : (i + 1) * size], batch) for i in range(accumulate)]

        def grad_fn(params: Params) -> Updates:
            return grad_and_value(params, state.model_state, micro_batches)[0]

        grads, (loss, (model_state, metrics)) = grad_and_value(state.params, state.model_state, micro_batches)
        with phase("update"):
            updates, opt_state = update(grads, state.opt_state, state.params, grad_fn=grad_fn)
            params = optim.apply_updates(state.params, updates)
        new_state = TrainState(state.step + 1, state.key, params, model_state, opt_state)

        grad_norm, update_norm = tree.global_norm(grads), tree.global_norm(updates)
        finite = torch.isfinite(loss) & torch.isfinite(grad_norm) & torch.isfinite(update_norm)
        if skip_nonfinite:
            new_state = tree.where(finite, new_state, state)._replace(step=state.step + 1)  # the next batch is another
        metrics |= {
            "loss": loss,
            "grad_norm": grad_norm,
            "update_norm": update_norm,
            "param_norm": tree.global_norm(new_state.params),
            "nonfinite": (~finite).to(torch.int64),
        }
        learning_rate = optim.current_learning_rate(opt_state)
        return new_state, metrics if learning_rate is None else {**metrics, "learning_rate": learning_rate}

    return train_step


def check_augmented(batch: object, accumulate: int) -> None:
    """Raise InputError unless an augmentation gave a batch that can be cut into equal micro-batches."""
    if not isinstance(batch, Batch):
        raise InputError(f"the augmentation gives a {type(batch).__name__}; wanted a Batch")
    if len(batch.images) % accumulate:
        raise InputError(f"a batch of {len(batch.images)} images is not {accumulate} equal micro-batches")


def seeded(train_step: TrainStep, seed: int) -> TrainStep:
    """The step with torch's generator, from which dropout draws, seeded by (seed, step, rank).

    Of a state that `tree.stack` made of several, the step is the highest of theirs.
    """
    last: tuple[Tensor, int, int] | None = None

    def seeded_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        nonlocal last
        # The step of the state that was returned last is known; to read that of another one waits for the device.
        if last is not None and last[0] is state.step and last[1] == state.step._version:
            step = last[2]
        else:
            step = int(state.step.max())
        random.seed_torch(seed, Stream.DROPOUT, step + 1, distributed.rank())
        state, metrics = train_step(state, batch)
        last = state.step, state.step._version, step + 1
        return state, metrics

    return seeded_step
