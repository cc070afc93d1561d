"""CIFAR-10, 50,000 + 10,000 colour images of 32x32, with the settings of the reference implementation: 64,000 steps,
SGD for ConvNets, Adam for ViTs. Fetch the data by --data.download.
"""

from experiments.base import DATA, MODEL, OPTIM, SCHEDULE, Experiment

cifar10_resnet18 = Experiment(
    name="cifar10-resnet18",
    data=DATA["cifar10"](),
    model=MODEL["resnet18"](),
    optim=OPTIM["sgd"](lr=0.1, momentum=0.9, weight_decay=5e-4),
    schedule=SCHEDULE["cosine"](floor=0.01),
    steps=64_000,
    batch_size=256,
    eval_every=1000,
    save_every=1000,
)

cifar10_vit_tiny = Experiment(
    name="cifar10-vit-tiny",
    data=DATA["cifar10"](),
    model=MODEL["vit-tiny"](patch_size=4),
    optim=OPTIM["adam"](lr=1e-3, b1=0.9, b2=0.999, weight_decay=5e-5),
    schedule=SCHEDULE["cosine"](floor=0.01),
    steps=64_000,
    batch_size=512,
    eval_every=1000,
    save_every=1000,
)
