"""AutoAugment for CIFAR-10: Ekin Cubuk et al., "AutoAugment: Learning augmentation policies from data", CVPR 2019,
arXiv 1805.09501.
"""

import torch
from torch import Tensor

import backbones.random as random
from backbones.augment.base import Augment, chain, check_device, of_uint8_images
from backbones.augment.geometry import Flip, Padding, crop_flip
from backbones.augment.policy import AUTO, Op, apply_ops, random_sign
from backbones.ranges import checked

CIFAR10 = [
    ((Op.INVERT, 1, 0), (Op.CONTRAST, 2, 6)),
    ((Op.ROTATE, 7, 2), (Op.TRANSLATE_X, 3, 9)),
    ((Op.SHARPNESS, 8, 1), (Op.SHARPNESS, 9, 3)),
    ((Op.SHEAR_Y, 5, 8), (Op.TRANSLATE_Y, 7, 9)),
    ((Op.AUTO_CONTRAST, 5, 0), (Op.EQUALIZE, 9, 0)),
    ((Op.SHEAR_Y, 2, 7), (Op.POSTERIZE, 3, 7)),
    ((Op.COLOR, 4, 3), (Op.BRIGHTNESS, 6, 7)),
    ((Op.SHARPNESS, 3, 9), (Op.BRIGHTNESS, 7, 9)),
    ((Op.EQUALIZE, 6, 0), (Op.EQUALIZE, 5, 0)),
    ((Op.CONTRAST, 6, 7), (Op.SHARPNESS, 6, 5)),
    ((Op.COLOR, 7, 7), (Op.TRANSLATE_X, 5, 8)),
    ((Op.EQUALIZE, 3, 0), (Op.AUTO_CONTRAST, 4, 0)),
    ((Op.TRANSLATE_Y, 4, 3), (Op.SHARPNESS, 2, 6)),
    ((Op.BRIGHTNESS, 9, 6), (Op.COLOR, 2, 8)),
    ((Op.SOLARIZE, 5, 2), (Op.INVERT, 0, 0)),
    ((Op.EQUALIZE, 2, 0), (Op.AUTO_CONTRAST, 6, 0)),
    ((Op.EQUALIZE, 2, 0), (Op.EQUALIZE, 6, 0)),
    ((Op.COLOR, 9, 9), (Op.EQUALIZE, 6, 0)),
    ((Op.AUTO_CONTRAST, 8, 0), (Op.SOLARIZE, 2, 8)),
    ((Op.BRIGHTNESS, 1, 3), (Op.COLOR, 7, 0)),
    ((Op.SOLARIZE, 4, 5), (Op.AUTO_CONTRAST, 9, 0)),
    ((Op.TRANSLATE_Y, 9, 9), (Op.TRANSLATE_Y, 7, 9)),
    ((Op.AUTO_CONTRAST, 9, 0), (Op.SOLARIZE, 8, 3)),
    ((Op.EQUALIZE, 8, 0), (Op.INVERT, 1, 0)),
    ((Op.TRANSLATE_Y, 7, 9), (Op.AUTO_CONTRAST, 9, 0)),
]
"""Table 7: pairs of (operation, tenths of its probability, level); level 0 also where an operation has none."""


@checked
def auto_augment(*, device: torch.device | str = "cpu", padding: Padding = 0, flip: Flip = False) -> Augment:
    """AutoAugment with the policy for CIFAR-10 (arXiv 1805.09501, table 7): one of 25 pairs of operations.

    `device` is where the batches lie.
    """
    policy = torch.tensor(CIFAR10, device=device)  # [25, 2, 3]

    def augment(keys: Tensor, images: Tensor) -> Tensor:
        check_device(keys, policy)
        chosen = policy[random.randint(keys, len(policy))]  # [B, 2, 3]
        for i in range(2):
            keys_apply, keys_sign = (random.fold_in(random.fold_in(keys, i), part) for part in (0, 1))
            op, tenths, level = chosen[:, i].unbind(dim=1)
            op = torch.where(random.randint(keys_apply, 10) < tenths, op, Op.IDENTITY)
            images = apply_ops(images, op, level, random_sign(keys_sign), AUTO)
        return images

    return chain(crop_flip(padding=padding, flip=flip), of_uint8_images(augment))
