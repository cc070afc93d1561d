"""Augmentations of several samples: mixup, CutMix and repeated augmentation.

Samples are mixed in pairs of neighbouring rows, (0, 1), (2, 3), ..., whose random numbers are those of the even row.
Ranks that hold an even number of rows each thus compute the same as one process. B images, C channels, H and W height
and width, K classes.
"""

from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Doc

import backbones.random as random
import backbones.tree as tree
from backbones.augment.base import Augment, chain, check_device, per_image
from backbones.augment.erase import inside
from backbones.augment.geometry import Flip, Padding, crop_flip
from backbones.errors import InputError
from backbones.ranges import Count, Positive, Range, checked
from backbones.types import Batch

Alpha = Annotated[Positive, Doc("both parameters of the Beta distribution of l")]
Times = Annotated[Count, Doc("rows that become copies of the first of them")]

Weigh = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(keys [B], images) -> weight of each image in its mixture, [B, 1, H, W] or [B, 1, 1, 1], and the mean of it, [B].

Both are float32 in [0, 1].
"""


@checked
def mixup(
    *,
    num_classes: int,
    device: torch.device | str = "cpu",
    alpha: Alpha = 0.2,
    padding: Padding = 0,
    flip: Flip = False,
) -> Augment:
    """Mix the images and the targets of each pair (arXiv 1710.09412, section 2), with l ~ Beta(alpha, alpha):

    x = l x_i + (1 - l) x_j and y = l y_i + (1 - l) y_j, and the same with i and j exchanged. See `mix_pairs`.
    """
    return chain(crop_flip(padding=padding, flip=flip), mix_pairs(_one_weight(alpha, device), num_classes))


@checked
def cutmix(
    *,
    num_classes: int,
    device: torch.device | str = "cpu",
    alpha: Alpha = 1.0,
    padding: Padding = 0,
    flip: Flip = False,
) -> Augment:
    """Exchange a rectangle between the images of each pair (arXiv 1905.04899, equations 1 and 2). See `mix_pairs`.

    Its sides are sqrt(1 - l) of those of the image, l ~ Beta(alpha, alpha); its centre is anywhere in the image, at
    whose border it ends. Targets are mixed by the areas.
    """
    return chain(crop_flip(padding=padding, flip=flip), mix_pairs(_rectangle(alpha, device), num_classes))


@checked
def mixup_cutmix(
    *,
    num_classes: int,
    device: torch.device | str = "cpu",
    mixup_alpha: Alpha = 0.8,
    cutmix_alpha: Alpha = 1.0,
    cutmix_probability: Annotated[float, Range("[0, 1]"), Doc("that a pair gets CutMix")] = 0.5,
    padding: Padding = 0,
    flip: Flip = False,
) -> Augment:
    """Either mixup or CutMix for each pair. See `mix_pairs`."""
    of_mixup, of_cutmix = _one_weight(mixup_alpha, device), _rectangle(cutmix_alpha, device)

    def weigh(keys: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        cut = random.uniform(random.fold_in(keys, 0)) < cutmix_probability
        keys = random.fold_in(keys, 1)
        (a, share_a), (b, share_b) = of_cutmix(keys, images), of_mixup(keys, images)
        return torch.where(per_image(cut), a, b), torch.where(cut, share_a, share_b)

    return chain(crop_flip(padding=padding, flip=flip), mix_pairs(weigh, num_classes))


@checked
def repeated(*, times: Times = 2, padding: Padding = 0, flip: Flip = False) -> Augment:
    """Repeated augmentation (arXiv 1901.09335, section 3): `times` rows become copies of the first of them.

    Each row keeps its own key, so what follows in a chain augments the copies differently. An epoch then sees one of
    `times` samples. Samples are to be mixed before it: after it, neighbouring rows are copies.

    Raises:
        InputError: when it is called with another number of rows.
    """

    def repeat(keys: Tensor, batch: Batch) -> Batch:
        _check_groups(len(keys), times)
        first = torch.arange(len(keys), device=keys.device) // times * times
        return tree.map(lambda leaf: leaf[first], batch)

    return chain(repeat, crop_flip(padding=padding, flip=flip))


def mix_pairs(weigh: Weigh, num_classes: int) -> Augment:
    """Mix each row with the other one of its pair, by a weight for each image or pixel.

    Images become float32 in [0, 255]; `targets`, from the labels where there are none yet, are mixed by the mean of the
    weight; `labels` become those of the larger share.

    Args:
        weigh: gets the keys of the even rows, twice each.
        num_classes: K.

    Raises:
        InputError: when it is called with an odd number of rows.
    """

    def mix(keys: Tensor, batch: Batch) -> Batch:
        _check_groups(len(keys), 2)
        weight, share = weigh(keys[::2].repeat_interleave(2), batch.images)
        targets = F.one_hot(batch.labels, num_classes) if batch.targets is None else batch.targets
        return batch._replace(
            images=weight * batch.images + (1 - weight) * _partner(batch.images),
            targets=share[:, None] * targets + (1 - share)[:, None] * _partner(targets),
            labels=torch.where(share >= 0.5, batch.labels, _partner(batch.labels)),
        )

    return mix


def _partner(rows: Tensor) -> Tensor:
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _check_groups(rows: int, size: int) -> None:
    if rows % size:
        raise InputError(
            f"got {rows} images, wanted a multiple of {size}: choose --batch-size so that each process gets a multiple"
        )


def _one_weight(alpha: float, device: torch.device | str) -> Weigh:
    beta = make_beta(alpha, device)

    def weigh(keys: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        share = beta(keys)
        return per_image(share), share

    return weigh


def _rectangle(alpha: float, device: torch.device | str) -> Weigh:
    """Weight 0 in a random rectangle, 1 elsewhere."""
    beta = make_beta(alpha, device)

    def weigh(keys: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        side, sizes = (1 - beta(random.fold_in(keys, 0))).sqrt(), images.shape[2:]
        y, x = (random.randint(random.fold_in(keys, 1 + i), size) for i, size in enumerate(sizes))
        half_rows, half_columns = ((side * (size / 2)).to(torch.int64) for size in sizes)
        cut = inside(images, y - half_rows, x - half_columns, 2 * half_rows, 2 * half_columns)
        weight = 1 - cut.to(torch.float32)
        return weight, weight.mean(dim=(1, 2, 3))

    return weigh


def make_beta(alpha: float, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """`draw(keys)`: from Beta(alpha, alpha), float32 in [0, 1], one for each key, by a table of quantiles.

    `device` is where the keys lie.
    """
    from scipy.special import betaincinv  # late: it takes a third of a second

    intervals = 4096
    levels = torch.linspace(0, 1, intervals + 1, dtype=torch.float64)
    quantiles = torch.from_numpy(betaincinv(alpha, alpha, levels.numpy())).to(device, torch.float32)

    def draw(keys: Tensor) -> Tensor:
        check_device(keys, quantiles)
        position = random.uniform(keys) * intervals
        below = position.to(torch.int64)
        return torch.lerp(quantiles[below], quantiles[below + 1], position - below)

    return draw
