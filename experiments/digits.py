"""The reference implementation's ten networks on scikit-learn's digits: 1,433 + 364 grey images scaled up to 16x16;
nothing to download. Top-1 of the last step with seed 0, on one thread of an AMD EPYC, torch 2.14, without a GPU:

digits-vit-tiny           98.90 % after 1,000 steps, 4:30 min
digits-resnet18           99.45 % after 300 steps, 3:29 min
digits-vgg11              98.63 % after 500 steps, 2:07 min
digits-vgg19-bn           98.35 % after 300 steps, 2:42 min
digits-preactresnet18     99.73 % after 300 steps, 3:34 min
digits-resnext29-32x4d    98.63 % after 200 steps, 3:33 min
digits-se-resnet18        99.73 % after 300 steps, 3:26 min
digits-cbam-resnet18      99.73 % after 300 steps, 3:41 min
digits-mobilenet          98.90 % after 300 steps, 0:48 min
digits-shufflenet-g8      99.45 % after 600 steps, 2:32 min
"""

from dataclasses import replace
from typing import Any

from backbones.augment import crop_flip
from backbones.data import digits
from backbones.experiment import Experiment, Use, use
from backbones.models.cbam_resnet import cbam_resnet18
from backbones.models.mobilenet import mobilenet
from backbones.models.preact_resnet import preactresnet18
from backbones.models.resnet import resnet18
from backbones.models.resnext import resnext29_32x4d
from backbones.models.se_resnet import se_resnet18
from backbones.models.shufflenet import shufflenet_g8
from backbones.models.vgg import vgg11, vgg19_bn
from backbones.models.vit import vit_tiny
from backbones.optim import adam, sgd
from backbones.optim.schedule import cosine

digits_vit_tiny = Experiment(
    name="digits-vit-tiny",
    data=use(digits),
    augment=use(crop_flip, padding=1, flip=False),
    model=use(vit_tiny, patch_size=8, dropout=0.1),
    optim=use(adam, lr=1e-3),
    schedule=use(cosine, warmup_steps=50, floor=0.01),
    steps=1000,
    batch_size=64,
    eval_every=200,
    save_every=200,
)

digits_resnet18 = Experiment(
    name="digits-resnet18",
    data=use(digits),
    augment=use(crop_flip, padding=1, flip=False),
    model=use(resnet18),
    optim=use(sgd, lr=0.05),
    schedule=use(cosine, warmup_steps=20, floor=0.01),
    steps=300,
    batch_size=64,
    eval_every=100,
    save_every=100,
)


def _with(model: Use, **changes: Any) -> Experiment:
    return replace(digits_resnet18, name=f"digits-{model.name}", model=model, **changes)


digits_vgg11 = _with(use(vgg11), optim=use(adam, lr=5e-4), steps=500)
digits_vgg19_bn = _with(use(vgg19_bn))
digits_preactresnet18 = _with(use(preactresnet18))
digits_resnext29_32x4d = _with(use(resnext29_32x4d), optim=use(adam, lr=1e-3), steps=200)
digits_se_resnet18 = _with(use(se_resnet18))
digits_cbam_resnet18 = _with(use(cbam_resnet18))
digits_mobilenet = _with(use(mobilenet))
digits_shufflenet_g8 = _with(use(shufflenet_g8), optim=use(adam, lr=1e-3), steps=600)
