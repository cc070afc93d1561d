"""Training on few images, from scratch and from the weights of three epochs of `cifar10-vit-tiny-plus`, which are read
from runs/cifar10-vit-tiny-plus; `--init-from` names another run. Top-1 of the last step, mean of seeds 0 to 2,
which also drew the images, in bfloat16 on one thread of an Intel Xeon (AMX), torch 2.14:

few-fashion-mnist-vit-tiny          62.26 % after 300 steps
few-fashion-mnist-vit-tiny-tuned    76.51 % after 300 steps
few-digits-vit-tiny                 68.41 % after 300 steps
few-digits-vit-tiny-tuned           78.94 % after 300 steps
"""

from dataclasses import replace

import torch

from backbones.augment import crop_flip
from backbones.compose import on
from backbones.data import Dataset, digits, fashion_mnist, take_per_class
from backbones.experiment import Experiment, use
from backbones.optim import adamw
from backbones.optim.schedule import cosine
from backbones.ranges import Count
from backbones.types import CPU
from experiments.plus import cifar10_vit_tiny_plus


def few_fashion_mnist(
    device: torch.device = CPU, *, root: str = "data", download: bool = False, per_class: Count = 40, seed: int = 0
) -> Dataset:
    """Fashion-MNIST with few training images.

    Args:
        device: where the samples are kept.
        root: folder of data sets, as for fashion-mnist.
        download: fetch the files into root if they are not there.
        per_class: training images of each class.
        seed: which ones.
    """
    return take_per_class(fashion_mnist(device, root=root, download=download), per_class, seed=seed)


def few_digits(device: torch.device = CPU, *, per_class: Count = 5, seed: int = 0) -> Dataset:
    """scikit-learn's digits with few training images, scaled up to 32x32 pixels as those of CIFAR-10 are.

    Args:
        device: where the samples are kept.
        per_class: training images of each class.
        seed: which ones.
    """
    return take_per_class(digits(device, size=32), per_class, seed=seed)


few_fashion_mnist_vit_tiny = Experiment(
    name="few-fashion-mnist-vit-tiny",
    data=use(few_fashion_mnist),
    augment=use(crop_flip, padding=2),
    model=cifar10_vit_tiny_plus.model.replace(drop_path=0.0),
    optim=use(adamw, lr=1e-3, weight_decay=0.05),
    schedule=use(cosine, warmup_steps=30, floor=0.01),
    steps=300,
    batch_size=64,
    eval_every=300,
    save_every=300,
)
few_digits_vit_tiny = replace(
    on(few_fashion_mnist_vit_tiny, few_digits), augment=use(crop_flip, padding=2, flip=False), batch_size=50
)


def tuned(experiment: Experiment) -> Experiment:
    """The same training from weights of CIFAR-10; each block learns a little more slowly than the next one."""
    source = f"runs/{cifar10_vit_tiny_plus.name}"
    return replace(experiment, name=f"{experiment.name}-tuned", init_from=source, layer_decay=0.95)


few_fashion_mnist_vit_tiny_tuned = tuned(few_fashion_mnist_vit_tiny)
few_digits_vit_tiny_tuned = tuned(few_digits_vit_tiny)
