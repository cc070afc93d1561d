"""ImageNet-1k, or any folder of images: `python train.py image-folder-vit-small --data.root imagenet`. Neither was
run to its end. The first 200 steps of each, all within the warm-up, were run on 600 generated JPEG files of ten classes
(--steps 200 --batch-size 16) on two CPU cores: the training loss went from 0.71 to 0.33 (ResNet-50), and stayed at 2.3
(ViT-Small).

image-folder-resnet50 is recipe A2 of "ResNet strikes back" (Wightman et al., arXiv 2110.00476) without its repeated
augmentation; image-folder-vit-small is "Better plain ViT baselines for ImageNet-1k" (Beyer et al., arXiv 2205.01580).
"""

import torch

from backbones.augment import Augment, chain, mixup, mixup_cutmix, rand_augment
from backbones.data import image_folder
from backbones.experiment import Experiment, use
from backbones.losses import binary_cross_entropy
from backbones.models.resnet import resnet50
from backbones.models.vit import vit_small
from backbones.optim import adamw, lamb
from backbones.optim.schedule import cosine


def rand_augment_mixup_cutmix(*, num_classes: int, device: torch.device, magnitude: int = 7) -> Augment:
    """Flip, RandAugment, then mixup (alpha 0.1) or CutMix (alpha 1).

    Args:
        num_classes: number of classes.
        device: where the batches lie.
        magnitude: level of RandAugment.
    """
    mix = mixup_cutmix(num_classes=num_classes, device=device, mixup_alpha=0.1, cutmix_alpha=1.0)
    return chain(rand_augment(magnitude=magnitude, flip=True), mix)


def rand_augment_mixup(*, num_classes: int, device: torch.device, magnitude: int = 10, alpha: float = 0.2) -> Augment:
    """Flip, RandAugment, then mixup.

    Args:
        num_classes: number of classes.
        device: where the batches lie.
        magnitude: level of RandAugment.
        alpha: of mixup.
    """
    mix = mixup(num_classes=num_classes, device=device, alpha=alpha)
    return chain(rand_augment(magnitude=magnitude, flip=True), mix)


image_folder_resnet50 = Experiment(
    name="image-folder-resnet50",
    data=use(image_folder, root="imagenet", image_size=224, crop="random", center=0.95),
    augment=use(rand_augment_mixup_cutmix),
    model=use(resnet50, stem="imagenet", drop_path=0.05),
    optim=use(lamb, lr=5e-3, weight_decay=0.02),
    schedule=use(cosine, warmup_steps=3130),  # 5 epochs
    loss=use(binary_cross_entropy),
    weight_decay_mask="matrices",
    epochs=300,
    batch_size=2048,
    precision="bfloat16",
    eval_every=626,
    save_every=626,
)

image_folder_vit_small = Experiment(
    name="image-folder-vit-small",
    data=use(image_folder, root="imagenet", image_size=224, crop="random", smallest=0.05),
    augment=use(rand_augment_mixup),
    model=use(vit_small, patch_size=16, pool="mean", positions="sincos"),
    optim=use(adamw, lr=1e-3, weight_decay=0.1),  # the paper's decay of 1e-4 is not multiplied by the learning rate
    schedule=use(cosine, warmup_steps=10_000),
    clip=1.0,
    weight_decay_mask="matrices",
    epochs=90,
    batch_size=1024,
    precision="bfloat16",
    eval_every=1251,
    save_every=1251,
)
