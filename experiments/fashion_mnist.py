"""Fashion-MNIST, 60,000 + 10,000 grey images padded to 32x32."""

from experiments.base import DATA, MODEL, OPTIM, SCHEDULE, Experiment

fashion_mnist_resnet18 = Experiment(
    name="fashion-mnist-resnet18",
    data=DATA["fashion-mnist"](),
    model=MODEL["resnet18"](),
    optim=OPTIM["sgd"](lr=0.05, nesterov=True),
    schedule=SCHEDULE["cosine"](warmup_steps=25, floor=0.01),
    steps=7050,  # 30 epochs
    batch_size=256,
    precision="bfloat16",
    eval_every=235,
    save_every=235,
)

fashion_mnist_vit_tiny = Experiment(
    name="fashion-mnist-vit-tiny",
    data=DATA["fashion-mnist"](),
    model=MODEL["vit-tiny"](dropout=0.1),
    optim=OPTIM["adam"](lr=1e-3),
    schedule=SCHEDULE["cosine"](warmup_steps=235, floor=0.01),
    steps=14100,  # 60 epochs
    batch_size=256,
    precision="bfloat16",
    eval_every=235,
    save_every=235,
)
