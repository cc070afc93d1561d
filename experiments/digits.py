"""UCI digits, 1,433 + 364 grey images of 16x16: the embedded default, nothing to download."""

from experiments.base import DATA, MODEL, OPTIM, SCHEDULE, Experiment

digits_vit_tiny = Experiment(
    name="digits-vit-tiny",
    data=DATA["digits"](),
    model=MODEL["vit-tiny"](patch_size=8, dropout=0.1),
    optim=OPTIM["adam"](lr=1e-3),
    schedule=SCHEDULE["cosine"](warmup_steps=50, floor=0.01),
    steps=1000,
    batch_size=64,
    eval_every=200,
    save_every=200,
)

digits_resnet18 = Experiment(
    name="digits-resnet18",
    data=DATA["digits"](),
    model=MODEL["resnet18"](),
    optim=OPTIM["sgd"](lr=0.05),
    schedule=SCHEDULE["cosine"](warmup_steps=20, floor=0.01),
    steps=300,
    batch_size=64,
    eval_every=100,
    save_every=100,
)
