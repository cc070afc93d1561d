"""What an experiment is: a frozen dataclass of plain values and components; `Experiment.make()` is the whole training.

program = experiment.make()
state = program.state
for step in range(100):
    state, metrics = program.train_step(state, program.batches(step))
"""

import dataclasses
import inspect
import json
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import nn

import backbones.distributed as distributed
import backbones.machine as machine
from backbones.augment import Augment, Normalize, identity, make_normalize, repeated
from backbones.component import GIVEN_TO_LOSSES, Use, is_plain, use as use  # `use` is for those who write experiments
from backbones.data import Batches, DataInfo, Dataset, Sampling, make_batches
from backbones.data.source import check_splits, check_statistics, read_some
from backbones.errors import InputError
from backbones.evaluation import (
    NUM_BN_BATCHES,
    Evaluate,
    PredictFn,
    WeightsOf,
    make_eval_step,
    make_evaluate,
    make_predict,
    make_weights_of,
)
from backbones.gradient import GradAndValue, LossFn, grad_and_value
from backbones.jit import Mode, jit
from backbones.losses import LOSSES, Loss, balanced_class_weights, check_loss, cross_entropy
from backbones.models import (
    LIBRARIES,
    Model,
    freeze,
    from_module,
    relative_rates,
    select,
    with_autocast,
    with_sync_batch_norm,
)
from backbones.models.base import Backbone
from backbones.models.check import check_batch_norm, check_logits
from backbones.optim.average import averages, ema_params
from backbones.optim.base import GradientTransformation
from backbones.optim.clip import clip_by_global_norm
from backbones.optim.combine import chain, with_rates
from backbones.optim.label import everything, hidden_matrices, is_hidden, matrices
from backbones.optim.schedule import Schedule, constant
from backbones.optim.wrap import keep_old_values
from backbones.ranges import Count, Positive, Probability, Seed, Share, check_values
from backbones.torch_settings import set_arithmetic
from backbones.train_step import (
    TrainState,
    TrainStep,
    check_augmented,
    init_train_state,
    make_loss_fn,
    make_train_step,
    seeded,
)
from backbones.tta import Tta
from backbones.types import Roles

VERSION = "0.2"
"""Of the format of `config.json` and of checkpoints."""

NUM_INIT_IMAGES = 5000
"""Training images that the initialisation of a model sees, if it sees any."""

COMPONENTS = ("data", "augment", "model", "optim", "schedule", "loss")
"""Fields of `Experiment` that are functions with options."""


class Program(NamedTuple):
    """A complete training, as values and pure functions."""

    state: TrainState
    """Before the first step."""
    train_step: TrainStep
    """(state, batch) -> (state, metrics); a compiled one donates its state, which must not be used again."""
    batches: Batches
    """step -> the training batch of that step, counted from 0."""
    evaluate: Evaluate
    """state -> metrics of the held-out samples."""
    weights_of: WeightsOf
    """state -> the weights that are evaluated: the average, if the optimizer keeps one."""
    predict: PredictFn
    """(params, model_state, images) -> logits, to be differentiated and vmapped as often as one likes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides what a run computes. Two equal experiments on one machine end in equal parameters.

    Raises:
        InputError: an option has a wrong value, or two options contradict each other.
    """

    name: str
    """Name of the experiment, and of its run folders."""
    data: Use
    """Data set."""
    augment: Use = use(identity)
    """Augmentation of training images."""
    model: Use
    """Backbone."""
    optim: Use
    """Optimizer."""
    schedule: Use = use(constant)
    """Factor on the learning rate over the run."""
    loss: Use = use(cross_entropy)
    """Loss of each sample."""

    steps: Count | None = None
    """Number of training steps."""
    epochs: Positive | None = None
    """Passes over the training samples, instead of steps."""
    batch_size: Count
    """Images per step, over all processes and micro-batches."""
    accumulate: Count = 1
    """Micro-batches that each process cuts its batch into, to save memory."""
    clip: Positive | None = None
    """Largest norm of the gradient; longer ones are scaled down to it."""
    ema: Probability | None = None
    """Decay of an exponential moving average of the parameters, which is evaluated in their place."""
    weight_decay_mask: Literal["all", "matrices"] | None = None
    """What weight decay applies to: all, or weights of linear layers and convolutions; None for the optimizer's own."""
    class_weights: Literal["auto"] | None = None
    """Weights of the classes in the loss: auto is N / (K n) for a class with n of the N training images, so that all K
    classes that have some count equally. Where augmentation mixes images, their weights are mixed too."""
    sampling: Sampling = "uniform"
    """Uniform draws every image equally often; balanced draws every class equally often, and its images in turn."""
    label_smoothing: Probability = 0.0
    """Weight of the uniform distribution in the target."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What to do when the loss or a gradient is not finite: stop the run, or leave the parameters as they are."""
    spike: Positive | None = 10.0
    """A loss more than this many median absolute deviations above the median of the last 100, and well above each of
    them, is a spike: its samples are printed, and drawn into spikes/. None disables spike detection."""
    rewind: Count | None = None
    """At a spike, or where --nonfinite would stop, go back to an earlier checkpoint and pass over this many steps: the
    bad step and those just before it. None never goes back."""
    pass_over: tuple[Count, ...] = ()
    """Steps to pass over: each advances the step count and changes nothing else; --rewind adds to them."""
    seed: Seed = 0
    """Seed of initialisation, order of samples, augmentation and dropout."""
    init_from: str | None = None
    """Weights to start from: a run folder, a checkpoint, or a file with our, torchvision's or timm's parameter names. A
    head of another size is initialised from scratch."""
    freeze: tuple[str, ...] = ()
    """Parameters that stay as they are: stem, trunk or head, or names of modules or parameters, with * as a wildcard.
    A BatchNorm that is frozen keeps its running statistics too."""
    train_only: tuple[str, ...] = ()
    """The only parameters that are trained, named in the same way; all others stay as they are."""
    layer_decay: Share | None = None
    """Learning rate of each block or stage, relative to that of the next one towards the head."""
    trunk_lr: Positive | None = None
    """Learning rate of all but the head, relative to that of the head."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto is the GPU where there is one."""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "float32"
    """Arithmetic of the model: float32; tf32, in which a GPU rounds what it multiplies to 10 bits; or bfloat16 by
    autocast. auto is bfloat16 on devices that are faster in it. Parameters are float32 as a rule."""
    compile: Literal["auto", "on", "off", "cudagraph"] = "auto"
    """Whether torch.compile turns the step into one graph; off runs it eagerly, cudagraph replays the graph without
    Python. auto compiles on CUDA only: on CPUs, compiling takes one to three minutes and saves up to 20 % of a step."""
    deterministic: bool = True
    """Whether CUDA may only use deterministic algorithms, as CPUs do anyway."""
    sync_batch_norm: bool = False
    """Whether BatchNorm takes its statistics over the images of all processes, by one all-reduce per layer."""
    threads: Count | None = None
    """CPU threads of each process; None for its share of the cores, or what OMP_NUM_THREADS says."""
    keep_memory: bool = True
    """Whether a process on a CPU keeps the memory that it frees, for the next step: faster with glibc's malloc."""
    timeout: Positive = distributed.TIMEOUT
    """Seconds that a process waits for the others before the run ends with an error."""

    log_every: Count = 10
    """Steps between lines of training metrics, each the mean over these steps."""
    eval_every: Count = 500
    """Steps between evaluations on the held-out samples."""
    eval_batch_size: Count = 500
    """Images per batch of evaluation, over all processes."""
    tta: Tta = "none"
    """Test-time augmentation: flip averages the logits over an image and its mirror image; flip+shift also over both
    shifted by a pixel. Not for digits or text, whose mirror images mean something else."""
    save_every: Count = 500
    """Steps between checkpoints. Only an evaluated one can be the best, so use a multiple of --eval-every."""
    keep: Count = 2
    """How many of the latest checkpoints to keep."""
    keep_every: Count | None = None
    """Also keep every checkpoint whose step is a multiple of it."""
    best: Literal["top1", "top5", "loss"] = "top1"
    """Held-out metric of the best checkpoint, which is kept too."""
    on_save_error: Literal["stop", "continue"] = "stop"
    """What to do when a checkpoint cannot be written, as on a full disk: stop the run, or warn and train on."""

    def __post_init__(self) -> None:
        annotations = {field.name: field.type for field in dataclasses.fields(self)}
        values = vars(self)
        check_values(annotations, values, prefix="--")
        for name in values.keys() - {*COMPONENTS}:
            if not is_plain(values[name]):
                raise InputError(
                    f"{name} is {values[name]!r}; it must be a number, a string, a bool, None, or a tuple of such"
                )
        for name in COMPONENTS:
            if not isinstance(values[name], Use):
                raise InputError(f"{name} is {values[name]!r}; wanted use(function, option=value, ...)")
        if not re.fullmatch(r"[\w][\w.+ -]*", self.name):
            raise InputError(
                f"--name is {self.name!r}; it must be the name of a folder, of letters, digits, spaces and _.+-"
            )
        if self.keep_every is not None and self.keep_every % self.save_every:
            raise InputError(
                f"--keep-every is {self.keep_every}; it must be a multiple of --save-every, which is "
                f"{self.save_every}: other steps are not saved"
            )
        if self.class_weights is not None and self.sampling == "balanced":
            raise InputError(
                "--class-weights auto and --sampling balanced each make all classes count equally; give one"
            )
        if self.init_from is not None and self.names_pretrained():
            raise InputError("--init-from and --model.pretrained both name weights to start from; give one of them")
        if (self.steps is None) == (self.epochs is None):
            raise InputError(f"steps is {self.steps} and epochs is {self.epochs}; give one of them")

    def names_pretrained(self) -> bool:
        """Whether the model is one of timm or torchvision that reads a file of weights."""
        return self.model.function in LIBRARIES.values() and self.model.values["pretrained"] is not None

    def num_steps(self, dataset: Dataset) -> int:
        """Steps of the run."""
        steps = (self.epochs or 0) * dataset.train.size / self.batch_size
        return self.steps or max(1, math.ceil(round(steps, 6)))  # 1.1 epochs of 50,000 are 55,000.00000000001

    def init_device(self) -> torch.device:
        """Join the processes, set torch's arithmetic, and return this process's device."""
        device = distributed.init(self.device)
        is_gpu = device.type == "cuda"
        if self.precision == "tf32" and not is_gpu:
            raise InputError("--precision tf32 is for GPUs, and this is a CPU; use float32 or bfloat16")
        if self.compile == "cudagraph" and not is_gpu:
            raise InputError("--compile cudagraph is for GPUs, and this is a CPU; use on or off")
        if self.threads is not None and is_gpu:
            distributed.warn0_once(f"--threads {self.threads} has no effect: a GPU computes")
        distributed.set_timeout(self.timeout)
        if not is_gpu:
            machine.set_num_threads(self.threads)
            if self.keep_memory:
                machine.keep_memory()
        set_arithmetic(deterministic=self.deterministic and is_gpu, tf32=self.precision == "tf32")
        return device

    def make_model(self, info: DataInfo) -> Model:
        """The model, for images of a data set; an `nn.Module` becomes one.

        Raises:
            InputError: it cannot be made, is no model, or does not give logits of the classes.
        """
        make = self.model.bind(image_shape=info.image_shape, num_classes=info.num_classes)
        is_class = inspect.isclass(self.model.function)
        made = None if is_class else make()
        model = from_module(make) if is_class or isinstance(made, nn.Module) else made
        if not isinstance(model, Model):
            raise InputError(f"--model {self.model.name} gives a {type(made).__name__}; wanted an nn.Module or a Model")
        if not isinstance(model.skeleton, Backbone) and self.model.function not in LIBRARIES.values():  # checked there
            check_logits(f"--model {self.model.name}", model, info.image_shape, info.num_classes)
        return model

    def make_loss(self) -> Loss:
        """The loss of each sample, with its options.

        Raises:
            InputError: the function has not the parameters of a `Loss`.
        """
        missing = set(GIVEN_TO_LOSSES) - inspect.signature(self.loss.function).parameters.keys()
        if missing:
            raise InputError(
                f"--loss {self.loss.name} has no parameter {', '.join(sorted(missing))}; wanted a function (logits, "
                "labels, targets, *, label_smoothing), where targets is None unless an augmentation mixes images"
            )
        return cast(Loss, self.loss.bind())

    def make_optimizer(self, roles: Roles, num_steps: int, whole_roles: Roles | None = None) -> GradientTransformation:
        """The optimizer for a run of `num_steps`, with clipping before and an average after it.

        Args:
            roles: of the parameters that are trained.
            num_steps: that a schedule is made for.
            whole_roles: with those of the frozen parameters, if any are: learning rates by layer count them too.
        """
        given = {"num_steps": num_steps, "hidden": hidden_matrices(roles)}
        if self._optimizer_takes("hidden") and not any(is_hidden(role) for role in roles.values()):
            distributed.warn0_once(f"--optim {self.optim.name} has no matrix between stem and head to train")
        if self.weight_decay_mask is not None:
            self._check_optimizer_takes("decays", "--weight-decay-mask")
            if self.optim.values.get("weight_decay") == 0:
                distributed.warn0_once("--weight-decay-mask has no effect: --optim.weight-decay is 0")
            given["decays"] = everything if self.weight_decay_mask == "all" else matrices(roles)
        if self.schedule != use(constant):
            self._check_optimizer_takes("schedule", f"--schedule {self.schedule.name}")
        schedule = _made("schedule", self.schedule, Callable, num_steps=num_steps)
        rates = relative_rates(whole_roles or roles, layer_decay=self.layer_decay or 1.0, trunk_lr=self.trunk_lr or 1.0)
        rates = {name: rates[name] for name in roles}
        if {self.layer_decay, self.trunk_lr} - {None, 1.0}:
            self._check_optimizer_takes("schedule", "--layer-decay or --trunk-lr")
            if len(set(rates.values())) == 1:
                distributed.warn0_once(
                    "--layer-decay and --trunk-lr give all parameters that are trained the same rate"
                )

        def make(scaled: Schedule) -> GradientTransformation:
            return _made("optim", self.optim, GradientTransformation, schedule=scaled, **given)

        optimizer = with_rates(make, schedule, rates)
        if self.clip is not None:
            optimizer = chain(clip_by_global_norm(self.clip), optimizer)
        return optimizer if self.ema is None else chain(optimizer, ema_params(self.ema))

    def _optimizer_takes(self, parameter: str) -> bool:
        return parameter in inspect.signature(self.optim.function).parameters

    def _check_optimizer_takes(self, parameter: str, option: str) -> None:
        """Raise InputError if the optimizer has no parameter by which an option acts on it."""
        if not self._optimizer_takes(parameter):
            raise InputError(
                f"{self.optim.name} has no parameter `{parameter}`, which {option} needs; leave that out, or give the "
                "function such a parameter"
            )

    def make(self, dataset: Dataset | None = None, model: Model | None = None) -> Program:
        """The complete training.

        Args:
            dataset: that of the experiment, if it is read already.
            model: that of the experiment, if it is made already: as `with_pretrained` makes it for `init_from`.

        Raises:
            InputError: the experiment cannot be run as it is.
        """
        if self.init_from is not None and model is None:
            raise InputError(f"this experiment starts from {self.init_from}: give `make` a model with these weights")
        device = self.init_device()
        self._check_batch_size()
        dataset = dataset or make_dataset(self.data, device)
        _, height, width = dataset.info.image_shape
        if self.tta == "flip+shift" and min(height, width) < 2:
            raise InputError(f"--tta flip+shift is for 2x2 pixels or more, and images have {width}x{height}; use flip")
        whole = model or self.make_model(dataset.info)
        model = self._complete_model(whole, dataset.info, device)
        num_steps = self.num_steps(dataset)
        self._warn_of_options(dataset, num_steps)
        optimizer = self.make_optimizer(model.roles, num_steps, whole.roles)
        normalize = make_normalize(dataset.info.mean, dataset.info.std, device)
        state = self._init_state(model, optimizer, dataset, normalize, device)
        train_batches = partial(make_batches, dataset.train, device=device, sampling=self.sampling)
        batches = train_batches(seed=self.seed, batch_size=self.batch_size, num_steps=num_steps)
        mode = self.mode(device)
        if mode != "eager":
            # an augmentation raises its own error here; within the compiled step it would be Dynamo's
            first = batches(0)
            check_augmented(self._make_augment(dataset.info, device)(first.index, first), self.accumulate)
            torch.compiler.reset()  # else an earlier program of this process counts as the same code with other shapes
            optimizer = keep_old_values(optimizer, state.params)
        loss_fn = self._make_loss_fn(model, dataset, device)
        # One process compiles one graph of the whole step. In several it breaks where DDP sends gradients: the loss
        # before it is then a graph of its own, and no CUDA graph: its replay would overwrite what the step holds.
        one_process = distributed.world_size() == 1
        if mode != "eager" and not one_process:
            loss_fn = jit(loss_fn, mode="compile")
        grad_fn = grad_and_value(loss_fn, state.params, transform="autograd" if mode == "eager" else "func")
        train_step = self._make_train_step(grad_fn, optimizer, dataset.info, normalize, device)
        train_step = jit(train_step, mode=mode, donate=True, fullgraph=one_process)

        micro_batch = self.batch_size // self.accumulate
        plain_batches = train_batches(seed=0, batch_size=micro_batch, num_steps=NUM_BN_BATCHES)
        weights_of = make_weights_of(model, normalize, plain_batches, partial(jit, mode=mode))
        eval_step = jit(make_eval_step(model, normalize, loss=self.make_loss(), tta=self.tta), mode=mode)
        return Program(
            state=state,
            train_step=seeded(train_step, self.seed),
            batches=batches,
            evaluate=make_evaluate(eval_step, dataset.test, weights_of, batch_size=self.eval_batch_size, device=device),
            weights_of=weights_of,
            predict=make_predict(model, normalize),
        )

    def make_pure_step(self, dataset: Dataset) -> TrainStep:
        """The train step of one process as a pure function that transforms of torch.func take: eager, and not seeded.

        It is differentiable, by hyperparameters in the state for one, but for BatchNorm's running statistics, which
        torch takes for constants, and for fused attention: call it within `sdpa_kernel(SDPBackend.MATH)`.

        Raises:
            InputError: as `make`; or there are several processes.
        """
        device = self.init_device()
        if distributed.world_size() > 1:
            raise InputError("make_pure_step is for one process; start it without torchrun")
        self._check_batch_size()
        info = dataset.info
        whole = self.make_model(info)
        model = self._complete_model(whole, info, device)
        optimizer = self.make_optimizer(model.roles, self.num_steps(dataset), whole.roles)
        grad_fn = grad_and_value(self._make_loss_fn(model, dataset, device), {}, transform="func")
        normalize = make_normalize(info.mean, info.std, device)
        return self._make_train_step(grad_fn, optimizer, info, normalize, device)

    def _complete_model(self, model: Model, info: DataInfo, device: torch.device) -> Model:
        """The model as it is trained: in its precision, with what is frozen, and BatchNorm over the images it is to
        see."""
        trained = select(model.roles, self.train_only, "train-only") if self.train_only else model.roles.keys()
        model = freeze(model, (model.roles.keys() - trained) | select(model.roles, self.freeze, "freeze"))
        if self.batch_size <= self.accumulate * (1 if self.sync_batch_norm else distributed.world_size()):
            check_batch_norm(f"a batch of {self.batch_size}", model, info.image_shape)
        if self.sync_batch_norm:
            model = with_sync_batch_norm(model)
        return with_autocast(model, machine.autocast_dtype(self.precision, device))

    def _init_state(
        self,
        model: Model,
        optimizer: GradientTransformation,
        dataset: Dataset,
        normalize: Normalize,
        device: torch.device,
    ) -> TrainState:
        """The state before the first step, on the device."""
        images = None
        if model.init_from_images is not None:
            source = dataset.train
            images = normalize(read_some(source.read, source.size, NUM_INIT_IMAGES, source.labels.device).to(device))
        state = init_train_state(model, optimizer, seed=self.seed, device=device, images=images)
        if self.ema is not None and len(averages(state.opt_state)) > 1:
            raise InputError(
                f"--ema {self.ema}: {self.optim.name} evaluates an average of its own already; leave --ema out"
            )
        return state

    def _make_loss_fn(self, model: Model, dataset: Dataset, device: torch.device) -> LossFn:
        """The loss of a batch, with options that suit the data set."""
        info, class_weights = dataset.info, None
        check_splits(dataset)
        check_statistics(dataset.train)
        if self.class_weights == "auto":
            class_weights = balanced_class_weights(dataset.train.labels, info.num_classes).to(device)
        loss = self.make_loss()
        check_loss(self.loss.name, loss, info.num_classes, device)
        return make_loss_fn(model, label_smoothing=self.label_smoothing, loss=loss, class_weights=class_weights)

    def _make_train_step(
        self,
        grad_fn: GradAndValue,
        optimizer: GradientTransformation,
        info: DataInfo,
        normalize: Normalize,
        device: torch.device,
    ) -> TrainStep:
        """The train step as a pure function, neither compiled nor seeded."""
        return make_train_step(
            grad_fn,
            optimizer,
            augment=self._make_augment(info, device),
            normalize=normalize,
            accumulate=self.accumulate,
            skip_nonfinite=self.nonfinite == "skip",
        )

    def _make_augment(self, info: DataInfo, device: torch.device) -> Augment:
        return _made("augment", self.augment, Callable, num_classes=info.num_classes, device=device)

    def mode(self, device: torch.device) -> Mode:
        """How the step runs on a device; not chosen by timing, which would give other bits each time."""
        if self.compile == "cudagraph":
            return "cudagraph"
        return "compile" if self.compile == "on" or (self.compile == "auto" and device.type == "cuda") else "eager"

    def _check_batch_size(self) -> None:
        """Raise InputError unless every process gets equally many complete micro-batches."""
        parts = distributed.world_size() * self.accumulate
        if self.batch_size % parts:
            nearest = max(round(self.batch_size / parts), 1) * parts
            raise InputError(
                f"a batch of {self.batch_size} cannot be cut into {parts} equal parts (processes times --accumulate: "
                f"{distributed.world_size()} x {self.accumulate}); set --batch-size {nearest}, or change one of these"
            )

    def _warn_of_options(self, dataset: Dataset, num_steps: int) -> None:
        """Print a warning for each option that has no effect here, or another one than it may seem."""
        if self.best == "top5" and dataset.info.num_classes <= 5:
            distributed.warn0_once(f"--best top5: it is always 100 % of {dataset.info.num_classes} classes")
        if self.batch_size > dataset.train.size:
            distributed.warn0_once(
                f"a batch of {self.batch_size} has some of the {dataset.train.size} training images twice"
            )
        if self.augment.function is repeated and self.data.values.get("crop") == "random":
            distributed.warn0_once(
                "--augment repeated with --data.crop random gives all copies of an image the same crop; use "
                "--data.crop center, and chain(repeated(), resized_crop()) in an augmentation of your own"
            )
        if self.rewind and self.nonfinite == "skip" and self.spike is None:
            distributed.warn0_once("--rewind has no effect with --nonfinite skip and --spike None")
        if self.pass_over and max(self.pass_over) > num_steps:
            distributed.warn0_once(f"--pass-over {max(self.pass_over)} has no effect: the run has {num_steps} steps")

    def to_json(self) -> dict[str, Any]:
        """Plain data for `config.json`; tuples are lists, as when it is read again."""
        components = {name: getattr(self, name).to_json() for name in COMPONENTS}
        return json.loads(json.dumps({"version": VERSION, **vars(self), **components}))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Experiment":
        """The experiment that `to_json` wrote, also after a round trip through text.

        Raises:
            InputError: it is of another version, or a component cannot be imported.
        """
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        version = values.pop("version", "0.1")
        if version != VERSION:
            raise InputError(
                f"it was written by version {version}, and this is {VERSION}; start a new run, or use version {version}"
            )
        if isinstance(values.get("loss"), str):  # as it was before a loss could have options
            values["loss"] = use(LOSSES[values["loss"]]).to_json()
        return cls(**{**values, **{name: Use.from_json(values[name]) for name in COMPONENTS if name in values}})


def make_dataset(data: Use, device: torch.device, root: str | None = None) -> Dataset:
    """The data set of a component; `root` is where it is now, if not where the component says.

    Raises:
        InputError: it cannot be read, or the function gives something else.
    """
    if root is not None:
        data = data.replace(root=root)
    return _made("data", data, Dataset, device=device)


def _made(kind: str, component: Use, wanted: Any, **given: Any) -> Any:
    """What a component makes, if it is of the type that is wanted."""
    made = component.make(**given)
    if not isinstance(made, wanted):
        raise InputError(f"--{kind} {component.name} gives a {type(made).__name__}; wanted a {wanted.__name__}")
    return made
