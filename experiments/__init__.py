"""Every experiment by name; `train.py` runs the first where none is named."""

from backbones.experiment import Experiment
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
