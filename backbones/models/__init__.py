"""Every model by its name on the command line.

A constructor takes `(image_shape, num_classes)` and, keyword-only, the options that `--model.OPTION` sets. Each paper
has a file; the others are:

base.py             what a model is; check.py: whether it can be trained; cost.py: its multiply-accumulates
layers.py           what networks share; cpu_layers.py: layers that are faster on CPUs; sync_batch_norm.py
roles.py            what each parameter is; frozen.py: those that are not trained, or learn more slowly
from_module.py      any nn.Module as a model; library.py, timm.py, torchvision.py: those of these libraries
pretrained.py       weights from elsewhere; state_dict.py: their files, convert.py: their names
exported.py         a model as a graph of torch.export; counterpart.py: the same network in timm or torchvision
"""

from collections.abc import Callable
from importlib import import_module

from backbones.models.base import Model, with_autocast
from backbones.models.from_module import from_module
from backbones.models.frozen import freeze, relative_rates, select
from backbones.models.pretrained import with_pretrained
from backbones.models.sync_batch_norm import with_sync_batch_norm
from backbones.models.timm import timm
from backbones.models.torchvision import torchvision

FAMILIES = {
    "vgg": ["vgg11", "vgg13", "vgg16", "vgg19", "vgg11-bn", "vgg13-bn", "vgg16-bn", "vgg19-bn"],
    "resnet": ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"],
    "preact_resnet": ["preactresnet18", "preactresnet34", "preactresnet50", "preactresnet101", "preactresnet152"],
    "wide_resnet": ["wrn-16-8", "wrn-28-10", "wrn-40-4"],
    "se_resnet": ["se-resnet18", "se-resnet34", "se-resnet50", "se-resnet101", "se-resnet152"],
    "cbam_resnet": ["cbam-resnet18", "cbam-resnet34", "cbam-resnet50", "cbam-resnet101", "cbam-resnet152"],
    "resnext": ["resnext29-32x4d", "resnext29-2x64d", "resnext50-32x4d", "resnext101-32x8d", "resnext101-64x4d"],
    "mobilenet": ["mobilenet"],
    "mobilenet_v2": ["mobilenet-v2"],
    "shufflenet": ["shufflenet-g2", "shufflenet-g3", "shufflenet-g4", "shufflenet-g8"],
    "airbench": ["airbench"],
    "convnext": ["convnext-atto", "convnext-tiny"],
    "vit": ["vit-tiny", "vit-small", "vit-base", "vit-large", "vit-huge"],
    "mlp_mixer": ["mixer-tiny", "mixer-small"],
}
"""File of this package -> the models in it, with dashes for underscores."""

MODELS: dict[str, Callable[..., Model]] = {
    name: getattr(import_module(f"backbones.models.{file}"), name.replace("-", "_"))
    for file, names in FAMILIES.items()
    for name in names
}

LIBRARIES: dict[str, Callable[..., Model]] = {"timm": timm, "torchvision": torchvision}
"""Models of other libraries, chosen by the option `architecture`."""
