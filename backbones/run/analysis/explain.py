"""Saliency maps: which pixels or patches of an image decide the predicted class.

B images, C channels, H and W height and width, h and w those of a map, N tokens, K classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.errors import InputError, check_known
from backbones.models.base import apply_head
from backbones.models.vit import ViT, attention_weights
from backbones.run.analysis.features import layer_shapes
from backbones.run.analysis.pictures import to_rgb
from backbones.run.analysis.trained_model import TrainedModel


def input_gradient(trained: TrainedModel, images: Tensor, classes: Tensor) -> Tensor:
    """[B, H, W]: magnitude of the gradient of a logit by a pixel, the largest of its channels.

    Source: Simonyan et al., "Deep inside convolutional networks", arXiv 1312.6034, section 3.1.

    Args:
        trained: the model.
        images: [B, C, H, W] in [0, 255].
        classes: [B] int64, whose logits are meant.
    """
    pixels = images.to(torch.float32).requires_grad_()
    logits = trained.logits(pixels).gather(1, classes[:, None])
    (gradient,) = torch.autograd.grad(logits.sum(), pixels)
    return gradient.abs().amax(dim=1)


def grad_cam(trained: TrainedModel, images: Tensor, classes: Tensor, layer: str) -> Tensor:
    """[B, h, w]: the sum of a layer's channels, each times the mean gradient of a logit by it; where negative, 0.

    Source: Selvaraju et al., "Grad-CAM", arXiv 1610.02391, equations 1 and 2.

    Args:
        trained: the model.
        images: [B, C, H, W] in [0, 255].
        classes: [B] int64, whose logits are meant.
        layer: a name in `model.features` of a map [B, C, h, w].

    Raises:
        InputError: there is no such layer, it gives another shape, or the head of the model is not known.
    """
    features = trained.features(images.to(torch.float32).requires_grad_())
    maps = features[check_known("layer", layer, features)]
    if maps.ndim != 4:
        raise InputError(
            f"{layer} gives {tuple(maps.shape)} for {len(images)} images; Grad-CAM needs maps [B, C, H, W]"
        )
    logits = apply_head(trained.model, trained.params, trained.model_state, features["pooled"])
    if not torch.allclose(logits, trained.logits(images), rtol=1e-3, atol=1e-3):
        raise InputError(f"what {type(trained.model.skeleton).__name__} does after its last layer is not known")
    (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), maps)
    return (gradient.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1).relu().detach()


@torch.no_grad()
def attention_maps(trained: TrainedModel, images: Tensor) -> dict[str, Tensor]:
    """Of a ViT, block -> [B, h, w], the attention to each patch, mean of all heads; and `rollout`, of all blocks.

    It is that of the class token; where there is none, the mean of the attention of all patches. Rollout multiplies the
    blocks' matrices, each halved and with 1/2 on its diagonal for the residual (Abnar and Zuidema, "Quantifying
    attention flow in transformers", arXiv 2005.00928, section 3).

    Args:
        trained: the model, whose skeleton is a `ViT`.
        images: [B, C, H, W] in [0, 255].
    """
    skeleton = trained.model.skeleton
    assert isinstance(skeleton, ViT)
    weights = attention_weights(trained.model, trained.leaves, trained.features(images))
    matrices = {name: each.mean(dim=1) for name, each in weights.items()}  # [B, N, N]
    rollout = torch.eye(matrices["block1"].shape[1], device=trained.device)
    for each in matrices.values():
        rollout = (each @ rollout + rollout) / 2
    first = 0 if skeleton.cls_token is None else 1
    patches = slice(first, first + skeleton.num_patches)  # registers are after them
    queries = patches if skeleton.cls_token is None else slice(1)
    return {
        name: each[:, queries, patches].mean(dim=1).unflatten(1, skeleton.grid)
        for name, each in {**matrices, "rollout": rollout}.items()
    }


def default_layers(trained: TrainedModel) -> list[str]:
    """What is shown where nothing is named: of a ViT the last block and the rollout, else the last map of 4x4 or more.

    Of a network without maps, such as a Mixer, nothing.
    """
    shapes = layer_shapes(trained)
    if isinstance(trained.model.skeleton, ViT):
        return [[*shapes][-2], "rollout"]
    return [name for name, shape in shapes.items() if len(shape) == 3 and min(shape[1:]) >= 4][-1:]


def make_maps(trained: TrainedModel, images: Tensor, classes: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Name -> map [B, H, W], whose largest value in each image is 1, or 0: the input gradient, and one per layer.

    Grad-CAM is interpolated between the positions of the layer, attention is the same for all pixels of a patch.

    Raises:
        InputError: the model has no layer of a name, or it cannot be shown.
    """
    maps = {"input gradient": input_gradient(trained, images, classes)}
    if isinstance(trained.model.skeleton, ViT):
        attention = attention_maps(trained, images)
        for name in layers:
            heatmap = attention[check_known("block", name, attention)]
            maps[f"attention, {name}"] = F.interpolate(heatmap[:, None], images.shape[2:])[:, 0]
    else:
        for name in layers:
            heatmap = grad_cam(trained, images, classes, name)
            maps[f"Grad-CAM, {name}"] = F.interpolate(heatmap[:, None], images.shape[2:], mode="bilinear")[:, 0]
    return {name: heatmap / heatmap.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30) for name, heatmap in maps.items()}


def draw_map(image: Tensor, values: Tensor) -> Tensor:
    """A map [H, W] in [0, 1] in colors, from black to yellow, over its image [C, H, W] in grey: [3, H, W] uint8."""
    from matplotlib import colormaps  # late

    grey = to_rgb(image).to(torch.float32).mean(dim=2, keepdim=True)  # [H, W, 1]
    colors = 255 * torch.from_numpy(colormaps["inferno"](values.cpu().numpy())[..., :3])  # [H, W, 3]
    return (0.25 * grey + 0.75 * colors).round().to(torch.uint8).permute(2, 0, 1)
