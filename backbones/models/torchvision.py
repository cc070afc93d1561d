"""torchvision's classifiers by their names (https://docs.pytorch.org/vision/stable/models.html)."""

from typing import Any

from torch import nn

from backbones.errors import check_known
from backbones.models.base import ImageShape, Model, NumClasses
from backbones.models.from_module import find_stem_and_head
from backbones.models.library import from_library
from backbones.models.pretrained import fit_channels

OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
"""Architecture -> options without which it gives more than logits."""


def torchvision(
    image_shape: ImageShape, num_classes: NumClasses, *, architecture: str, pretrained: str | None = None
) -> Model:
    """Any classifier of torchvision.

    Images that have not three channels get a first convolution whose kernels are summed or repeated over the channels.

    Args:
        image_shape: channels, height and width of an image.
        num_classes: number of classes K.
        architecture: its name, as `torchvision.models.list_models()` has it, such as resnet50 or swin_t.
        pretrained: file of weights of that architecture, fitted as those of --init-from; None for an initialisation at
            random.

    Raises:
        InputError: torchvision has no such architecture, or cannot make it for these images; or, in `init`, the file
            cannot be read or holds other weights.
    """
    import torchvision.models  # late: it takes a second

    names = torchvision.models.list_models(module=torchvision.models)
    check_known("architecture of torchvision", architecture, names)
    channels = image_shape[0]
    arguments = torchvision_arguments(architecture, image_shape, num_classes)

    def make() -> nn.Module:
        module = torchvision.models.get_model(architecture, weights=None, **arguments)
        if channels != 3:
            stem = module.get_submodule(find_stem_and_head(module)[0][0])
            stem.in_channels, stem.weight = channels, nn.Parameter(fit_channels(stem.weight.detach(), channels))
        return module

    return from_library(f"{architecture} of torchvision", make, image_shape, num_classes, pretrained)


def torchvision_arguments(architecture: str, image_shape: ImageShape, num_classes: int) -> dict[str, Any]:
    """What `torchvision.models.get_model` is given beside the name of the architecture."""
    channels, height, width = image_shape
    options: dict[str, Any] = {"num_classes": num_classes, **OPTIONS.get(architecture, {})}
    if "aux_logits" in options:  # as with its weights, which want images of another mean and standard deviation
        options["transform_input"] = channels == 3
    if architecture.startswith("vit_"):
        options["image_size"] = height
    if architecture.startswith("maxvit_"):
        options["input_size"] = (height, width)
    return options
