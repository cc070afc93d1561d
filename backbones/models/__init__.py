"""Every model by its name on the command line.

A constructor takes `(image_shape, num_classes)` and, keyword-only, the options that `--model.OPTION` sets.
"""

from collections.abc import Callable
from functools import partial

from backbones.models import (
    airbench,
    cbam_resnet,
    convnext,
    mlp_mixer,
    mobilenet,
    mobilenet_v2,
    preact_resnet,
    resnet,
    resnext,
    se_resnet,
    shufflenet,
    vgg,
    vit,
    wide_resnet,
)
from backbones.models.base import Model, with_autocast, with_pretrained
from backbones.models.foreign import from_module

MODELS: dict[str, Callable[..., Model]] = {
    "vgg11": vgg.vgg11,
    "vgg13": vgg.vgg13,
    "vgg16": vgg.vgg16,
    "vgg19": vgg.vgg19,
    "vgg11-bn": vgg.vgg11_bn,
    "vgg13-bn": vgg.vgg13_bn,
    "vgg16-bn": vgg.vgg16_bn,
    "vgg19-bn": vgg.vgg19_bn,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    "preactresnet18": preact_resnet.preactresnet18,
    "preactresnet34": preact_resnet.preactresnet34,
    "preactresnet50": preact_resnet.preactresnet50,
    "preactresnet101": preact_resnet.preactresnet101,
    "preactresnet152": preact_resnet.preactresnet152,
    "wrn-16-8": wide_resnet.wrn_16_8,
    "wrn-28-10": wide_resnet.wrn_28_10,
    "wrn-40-4": wide_resnet.wrn_40_4,
    "se-resnet18": se_resnet.se_resnet18,
    "se-resnet34": se_resnet.se_resnet34,
    "se-resnet50": se_resnet.se_resnet50,
    "se-resnet101": se_resnet.se_resnet101,
    "se-resnet152": se_resnet.se_resnet152,
    "cbam-resnet18": cbam_resnet.cbam_resnet18,
    "cbam-resnet34": cbam_resnet.cbam_resnet34,
    "cbam-resnet50": cbam_resnet.cbam_resnet50,
    "cbam-resnet101": cbam_resnet.cbam_resnet101,
    "cbam-resnet152": cbam_resnet.cbam_resnet152,
    "resnext29-32x4d": resnext.resnext29_32x4d,
    "resnext29-2x64d": resnext.resnext29_2x64d,
    "resnext50-32x4d": resnext.resnext50_32x4d,
    "resnext101-32x8d": resnext.resnext101_32x8d,
    "resnext101-64x4d": resnext.resnext101_64x4d,
    "mobilenet": mobilenet.mobilenet,
    "mobilenet-v2": mobilenet_v2.mobilenet_v2,
    "shufflenet-g2": shufflenet.shufflenet_g2,
    "shufflenet-g3": shufflenet.shufflenet_g3,
    "shufflenet-g4": shufflenet.shufflenet_g4,
    "shufflenet-g8": shufflenet.shufflenet_g8,
    "airbench": airbench.airbench,
    "convnext-atto": convnext.convnext_atto,
    "convnext-tiny": convnext.convnext_tiny,
    "vit-tiny": vit.vit_tiny,
    "vit-small": vit.vit_small,
    "vit-base": vit.vit_base,
    "vit-large": vit.vit_large,
    "vit-huge": vit.vit_huge,
    "mixer-tiny": mlp_mixer.mixer_tiny,
    "mixer-small": mlp_mixer.mixer_small,
}


def families() -> dict[str, list[str]]:
    """The names in MODELS by the file that defines them: {"vgg": ["vgg11", "vgg13", ...], "resnet": [...], ...}."""
    by_file: dict[str, list[str]] = {}
    for name, constructor in MODELS.items():
        function = constructor.func if isinstance(constructor, partial) else constructor
        by_file.setdefault(function.__module__.rpartition(".")[2], []).append(name)
    return by_file
