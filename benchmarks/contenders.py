"""Training steps to compare: the one of the library, and hand-written loops."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backbones.random as random
from backbones.augment import identity, make_normalize
from backbones.component import use
from backbones.data import Dataset, in_memory, make_batches
from backbones.experiment import Experiment, Program
from backbones.models import MODELS
from backbones.models.base import with_memory
from backbones.models.cpu_layers import Conv, Linear
from backbones.types import CPU
from benchmarks.optimizers import COUNTERPARTS, FUSED
from experiments.digits import digits_resnet18, digits_vit_tiny

Precision = Literal["float32", "bfloat16"]
Step = Callable[[int], Tensor]
"""Trains on the batch of that number, and returns the loss."""

TIMM = {"vit-tiny": "vit_tiny_patch16_224", "vit-small": "vit_small_patch16_224"}
"""Models of timm that are the same for images of 32x32: its ConvNets begin with the strides for ImageNet."""

COMPILED: dict[str, Literal["on", "cudagraph"]] = {"compiled": "on", "CUDA graph": "cudagraph"}
"""What comes after the name of a contender -> how its step is compiled."""

CONTENDERS = ("ours", "by hand", *(f"{who}, {how}" for how in COMPILED for who in ("ours", "by hand")), "timm", "plain")


@dataclass(frozen=True)
class Setting:
    """What is trained."""

    model: str
    precision: Precision
    batch_size: int
    image_size: int
    device: Literal["auto", "cpu", "cuda"]
    keep_memory: bool

    def experiment(self) -> Experiment:
        """A ConvNet with SGD or a transformer with Adam, as in the recipes, on 1,280 random images in 10 classes."""
        recipe = digits_vit_tiny if self.model.startswith(("vit", "mixer")) else digits_resnet18
        patch_size = {"patch_size": 4} if recipe is digits_vit_tiny else {}
        return replace(
            recipe,
            data=use(random_images, size=self.image_size),
            augment=use(identity),
            model=use(MODELS[self.model], **patch_size),
            batch_size=self.batch_size,
            device=self.device,
            precision=self.precision,
            compile="off",
            keep_memory=self.keep_memory,
        )


def random_images(device: torch.device, *, size: int) -> Dataset:
    """1,280 random images in 10 classes."""
    images = torch.randint(256, (1280, 3, size, size), dtype=torch.uint8, generator=random.generator(0))
    labels = torch.arange(1280) % 10
    return in_memory((images, labels), (images[:10], labels[:10]), tuple("0123456789"), device)


def make_step(contender: str, setting: Setting) -> Step:
    """A contender's training step, ready to run."""
    contender, _, how = contender.partition(", ")
    experiment = setting.experiment()
    if how:
        experiment = replace(experiment, compile=COMPILED[how])
    if contender == "ours":
        return ours(experiment.make())
    if contender == "timm":
        import timm

        module = timm.create_model(TIMM[setting.model], num_classes=10, img_size=setting.image_size, patch_size=4)
    else:
        module = our_module(experiment)
    return by_hand(experiment, module, as_people_write=contender == "plain")


def ours(program: Program) -> Step:
    """The step of the library."""
    state, train_step, batches, *_ = program

    def step(i: int) -> Tensor:
        nonlocal state
        state, metrics = train_step(state, batches(i))
        return metrics["loss"]

    return step


def our_module(experiment: Experiment) -> nn.Module:
    """The model of an experiment as the `nn.Module` that a plain loop would train, with torch's own layers."""
    model = experiment.make_model(experiment.data.make(device=CPU).info)
    params, model_state = model.init(random.generator(0))
    module = with_memory(model.skeleton).train()
    module.load_state_dict({**params, **model_state})
    for layer in module.modules():
        if type(layer) in (Conv, Linear):  # depthwise convolutions stay, since torch's are slower
            layer.forward = super(type(layer), layer).forward  # type: ignore
    return module


def by_hand(experiment: Experiment, module: nn.Module, *, as_people_write: bool) -> Step:
    """A loop of nn.Module, autocast, `backward()` and torch.optim, on data that is on the device.

    It is the best that we could write, or it leaves everything at torch's defaults: among them are convolutions in
    TF32 on a GPU. Neither needs the same results each time, as ours does.
    """
    device = replace(experiment, deterministic=False).init_device()
    torch.backends.cudnn.allow_tf32 = as_people_write
    dataset = experiment.data.make(device=device)
    memory_format = torch.contiguous_format if as_people_write else torch.channels_last
    module = module.to(device).to(memory_format=memory_format)
    options = {} if as_people_write else {"fused" if experiment.optim.name in FUSED else "foreach": True}
    optimizer = COUNTERPARTS[experiment.optim.name](module.parameters(), lr=experiment.optim.values["lr"], **options)
    normalize = make_normalize(dataset.info.mean, dataset.info.std, device)
    batches = make_batches(dataset.train, seed=0, batch_size=experiment.batch_size, device=device)
    precision = torch.bfloat16 if experiment.precision == "bfloat16" else None

    def loss_fn(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(device.type, precision, enabled=precision is not None):
            logits = module(normalize(images).contiguous(memory_format=memory_format))
        return F.cross_entropy(logits.float(), labels)

    if experiment.compile != "off":
        loss_fn = torch.compile(loss_fn, mode="reduce-overhead" if experiment.compile == "cudagraph" else None)

    def step(i: int) -> Tensor:
        optimizer.zero_grad()
        batch = batches(i)
        loss = loss_fn(batch.images, batch.labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
