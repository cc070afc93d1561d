"""VGG: Karen Simonyan and Andrew Zisserman, "Very deep convolutional networks for large-scale image recognition",
ICLR 2015, arXiv 1409.1556. BatchNorm, in the `-bn` nets, is from arXiv 1502.03167.

Differs from the paper: the head is the global average and one linear layer, as is usual for small images (the paper's
three layers are there as `head="mlp"`); convolutions before a BatchNorm have no bias; pooling rounds up, so that images
of less than 32 pixels work. There is one stem for all sizes of image: 3x3 convolutions from the start.

Shapes: B images, C channels, H and W height and width, K classes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from backbones.models.base import Model, make_model
from backbones.models.layers import check_probability, conv3x3, init_conv_net

Head = Literal["linear", "mlp"]


def make_features(stage_depths: Sequence[int], in_channels: int, batch_norm: bool) -> nn.Sequential:
    """Five stages of 3x3 convolutions, each ending in a pool that halves the image (table 1)."""
    layers = nn.Sequential()
    for depth, width in zip(stage_depths, (64, 128, 256, 512, 512), strict=True):
        for _ in range(depth):
            if batch_norm:
                layers.extend([conv3x3(in_channels, width), nn.BatchNorm2d(width), nn.ReLU()])
            else:
                layers.extend([nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU()])
            in_channels = width
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return layers


def make_head(head: Head, num_classes: int, dropout: float) -> nn.Sequential:
    """From 512 feature maps to logits: average and one layer, or the paper's three layers over 7x7 places."""
    if head == "linear":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, num_classes))
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        nn.Linear(512 * 7 * 7, 4096),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(4096, num_classes),
    )


class VGGModule(nn.Module):
    """Convolutions and head (table 1)."""

    def __init__(
        self,
        stage_depths: Sequence[int],
        batch_norm: bool,
        *,
        head: Head,
        dropout: float,
        in_channels: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.features = make_features(stage_depths, in_channels, batch_norm)
        self.head = make_head(head, num_classes, dropout)

    def forward(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, K]
        return self.head(self.features(images))


def vgg(
    stage_depths: Sequence[int],
    batch_norm: bool,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    head: Head = "linear",
    dropout: float = 0.5,
) -> Model:
    """Plain deep ConvNet (arXiv 1409.1556), for images of any size.

    Args:
        stage_depths: number of convolutions in each of the five stages.
        batch_norm: whether a BatchNorm follows each convolution.
        image_shape: channels, height and width of an image.
        num_classes: number of classes K.
        head: linear is the global average and one layer; mlp is the paper's three layers, for images of 224x224.
        dropout: probability in [0, 1) of dropping in the mlp head (section 3.1: 0.5).

    Raises:
        InputError: the dropout is out of its range.
    """
    check_probability(dropout=dropout)
    make_module = partial(
        VGGModule,
        stage_depths,
        batch_norm,
        head=head,
        dropout=dropout,
        in_channels=image_shape[0],
        num_classes=num_classes,
    )
    return make_model(make_module, init_conv_net)


vgg11 = partial(vgg, (1, 1, 2, 2, 2), False)
vgg13 = partial(vgg, (2, 2, 2, 2, 2), False)
vgg16 = partial(vgg, (2, 2, 3, 3, 3), False)
vgg19 = partial(vgg, (2, 2, 4, 4, 4), False)
vgg11_bn = partial(vgg, (1, 1, 2, 2, 2), True)
vgg13_bn = partial(vgg, (2, 2, 2, 2, 2), True)
vgg16_bn = partial(vgg, (2, 2, 3, 3, 3), True)
vgg19_bn = partial(vgg, (2, 2, 4, 4, 4), True)
