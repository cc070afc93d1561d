"""VGG: Karen Simonyan and Andrew Zisserman, "Very deep convolutional networks for large-scale image recognition",
ICLR 2015, arXiv 1409.1556. BatchNorm, in the `-bn` networks, is from arXiv 1502.03167.

Differs from the paper: the head is one linear layer after a global average, as is usual for small images (the paper's
three layers are `head="mlp"`); convolutions before a BatchNorm have no bias; pooling rounds up, so that images smaller
than 32x32 work. All image sizes have the same stem, the first 3x3 convolution.

Shapes: B images, C channels, H and W height and width, K classes.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

import backbones.distributed as distributed
from backbones.models.base import Backbone, ImageShape, NumClasses, StageDepths, make_constructor
from backbones.models.cpu_layers import Conv
from backbones.models.layers import conv3x3, init_conv_net
from backbones.ranges import Probability

Head = Literal["linear", "mlp"]

MLP_WIDTH = 4096
"""Of the hidden layers of the mlp head."""


def make_features(stage_depths: Sequence[int], in_channels: int, batch_norm: bool) -> nn.Sequential:
    """Five stages of 3x3 convolutions, each ending in a max-pool that halves the image (table 1)."""
    layers = nn.Sequential()
    for depth, width in zip(stage_depths, (64, 128, 256, 512, 512), strict=True):
        for _ in range(depth):
            if batch_norm:
                layers.extend([conv3x3(in_channels, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)])
            else:
                layers.extend([Conv(in_channels, width, 3, bias=True), nn.ReLU(inplace=True)])
            in_channels = width
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return layers


def make_head(head: Head, num_classes: int, dropout: float) -> nn.Sequential:
    """From the pooled vector to logits: one linear layer, or the paper's three."""
    if head == "linear":
        layers: list[nn.Module] = [nn.Linear(512, num_classes)]
    else:
        width = MLP_WIDTH
        layers = [nn.Linear(512 * 7 * 7, width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        layers += [nn.Linear(width, width), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(width, num_classes)]
    # Leaves are named `head.2.weight` and so on: 0 and 1 were the pool and the flattening, which are before the head.
    return nn.Sequential(OrderedDict((str(i), layer) for i, layer in enumerate(layers, start=2)))


class VGG(Backbone):
    """Plain deep ConvNet (arXiv 1409.1556, table 1), for images of any size.

    There is no map `stem`: the stem is the first convolution of stage 1. `pooled` is the global average [B, 512], or
    with the mlp head the average over 7x7 regions [B, 512 * 7 * 7].

    Args:
        stage_depths: number of convolutions in each of the five stages.
        batch_norm: whether a BatchNorm follows each convolution.
        head: linear is one layer after a global average; mlp is the paper's three layers, for images of 224x224.
        dropout: probability of dropping in the mlp head (section 3.1: 0.5); a linear head has none.
    """

    STEM = ("features.0",)

    def __init__(
        self,
        stage_depths: StageDepths,
        batch_norm: bool,
        image_shape: ImageShape,
        num_classes: NumClasses,
        *,
        head: Head = "linear",
        dropout: Probability = 0.5,
    ) -> None:
        super().__init__()
        if head == "linear" and dropout != 0.5:
            distributed.warn0_once(f"a dropout of {dropout} has no effect in a linear head; give the head mlp")
        self.features = make_features(stage_depths, image_shape[0], batch_norm)
        self.pools_regions = head == "mlp"
        self.head = make_head(head, num_classes, dropout)

    def forward_features(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        x, stage = images, 1
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                yield f"stage{stage}", x
                stage += 1
        # 7x7 stays as it is; CUDA has no deterministic gradient of this pool
        if self.pools_regions and x.shape[2:] != (7, 7):
            x = F.adaptive_avg_pool2d(x, 7)
        yield "pooled", x.flatten(1) if self.pools_regions else x.mean((2, 3))


vgg = make_constructor(VGG, init_conv_net)
vgg11 = partial(vgg, (1, 1, 2, 2, 2), False)
vgg13 = partial(vgg, (2, 2, 2, 2, 2), False)
vgg16 = partial(vgg, (2, 2, 3, 3, 3), False)
vgg19 = partial(vgg, (2, 2, 4, 4, 4), False)
vgg11_bn = partial(vgg, (1, 1, 2, 2, 2), True)
vgg13_bn = partial(vgg, (2, 2, 2, 2, 2), True)
vgg16_bn = partial(vgg, (2, 2, 3, 3, 3), True)
vgg19_bn = partial(vgg, (2, 2, 4, 4, 4), True)
