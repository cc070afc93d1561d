"""CIFAR-10, 50,000 + 10,000 colour images of 32x32, with the settings of the reference implementation: 64,000 steps,
SGD for ConvNets, Adam for ViTs. Fetch the data by --data.download. Not run to their end yet.

cifar10_resnet18    python train.py cifar10-resnet18
cifar10_vit_tiny    python train.py cifar10-vit-tiny
"""

from backbones.augment import crop_flip
from backbones.component import use
from backbones.data import cifar10
from backbones.experiment import Experiment
from backbones.models.resnet import resnet18
from backbones.models.vit import vit_tiny
from backbones.optim import adam, sgd
from backbones.optim.schedule import cosine

cifar10_resnet18 = Experiment(
    name="cifar10-resnet18",
    data=use(cifar10),
    augment=use(crop_flip, padding=4),
    model=use(resnet18),
    optim=use(sgd, lr=0.1, momentum=0.9, weight_decay=5e-4),
    schedule=use(cosine, floor=0.01),
    steps=64_000,
    batch_size=256,
    eval_every=1000,
    save_every=1000,
)

cifar10_vit_tiny = Experiment(
    name="cifar10-vit-tiny",
    data=use(cifar10),
    augment=use(crop_flip, padding=4),
    model=use(vit_tiny, patch_size=4),
    optim=use(adam, lr=1e-3, b1=0.9, b2=0.999, weight_decay=5e-5),
    schedule=use(cosine, floor=0.01),
    steps=64_000,
    batch_size=512,
    eval_every=1000,
    save_every=1000,
)
