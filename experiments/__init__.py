"""Every experiment by name. Compose your own with `dataclasses.replace` and hand it to `train.main`."""

from experiments.base import Experiment as Experiment
from experiments.cifar10 import cifar10_resnet18, cifar10_vit_tiny
from experiments.digits import digits_resnet18, digits_vit_tiny
from experiments.fashion_mnist import fashion_mnist_resnet18, fashion_mnist_vit_tiny
from experiments.optimizers import OPTIMIZER_EXPERIMENTS

EXPERIMENTS: dict[str, Experiment] = {
    "digits-vit-tiny": digits_vit_tiny,
    "digits-resnet18": digits_resnet18,
    "fashion-mnist-resnet18": fashion_mnist_resnet18,
    "fashion-mnist-vit-tiny": fashion_mnist_vit_tiny,
    "cifar10-resnet18": cifar10_resnet18,
    "cifar10-vit-tiny": cifar10_vit_tiny,
    **OPTIMIZER_EXPERIMENTS,
}

DEFAULT = "digits-vit-tiny"
