"""UCI digits, 1,437 training and 360 held-out images of 16x16. The embedded default: nothing to download.

python train.py digits-vit-tiny
python train.py digits-resnet18
"""

from experiments.base import COMPONENTS, Experiment

digits_vit_tiny = Experiment(
    name="digits-vit-tiny",
    data=COMPONENTS["data"]["digits"](),
    model=COMPONENTS["model"]["vit-tiny"](patch_size=4, dropout=0.1),
    optim=COMPONENTS["optim"]["adam"](lr=5e-4),
    schedule=COMPONENTS["schedule"]["cosine"](warmup_steps=50, floor=0.01),
    steps=600,
    batch_size=96,
    eval_every=100,
    save_every=100,
)
