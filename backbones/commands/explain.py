"""`backbones explain RUN IMAGE ...`: a picture of the pixels or patches that decide the predicted class."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import backbones.distributed as distributed
from backbones.commands.options import AT_ONCE, CheckpointName, DeviceName, ImagePaths, RunPath
from backbones.data.image_files.images import read_images
from backbones.data.image_files.listing import printable
from backbones.errors import InputError, check_known
from backbones.run.analysis.explain import default_layers, draw_map, make_maps
from backbones.run.analysis.pictures import Tile, check_picture, save_tiles
from backbones.run.analysis.trained_model import TrainedModel, load_model, read_trained
from backbones.run.checkpoint import parse_saved
from backbones.torch_settings import in_full_float32

SIDE = 192
"""Pixels of a drawn image."""


@in_full_float32()
def explain(
    run: RunPath,
    images: ImagePaths,
    /,
    *,
    layers: tuple[str, ...] = (),
    target: str | None = None,
    out: Path = Path("explain.png"),
    checkpoint: CheckpointName = "latest",
    resize: bool = False,
    device: DeviceName = "auto",
) -> None:
    """Draw which parts of image files decide the predicted class: one row per image, maps from black (0) to yellow.

    The input gradient says which pixels change the logit of the class most (arXiv 1312.6034), Grad-CAM which positions
    of a layer's map raise it (arXiv 1610.02391). Of a ViT there is the attention of the class token, or of all
    patches where they are averaged: that of a block, mean of its heads, and its rollout over all blocks (arXiv
    2005.00928), which is the same for every class.

    Args:
        run: a run folder, or one checkpoint in it.
        images: image files.
        layers: maps for Grad-CAM, as stage2 stage3, by default the last of 4x4 positions or more; of a ViT blocks,
            such as block1 block12, and rollout.
        target: class to explain; None for the one that is predicted.
        out: picture to write.
        checkpoint: which checkpoint of the run.
        resize: scale image files of another size to that of the model.
        device: where to compute; auto is the GPU where there is one.

    Raises:
        InputError: a file or checkpoint cannot be read, or the model has no such class or layer.
    """
    if not images:
        raise InputError("no image files are named; give some after the run")
    check_picture(out)
    content, experiment = read_trained(run, parse_saved(checkpoint))
    torch_device = distributed.init(device)
    trained = load_model(content, dataclasses.replace(experiment, precision="float32"), torch_device)
    names = trained.info.class_names
    if target is not None:
        check_known("class", target, names)
    pixels = read_images(images, trained.info, may_resize=resize).to(torch_device)
    with torch.no_grad():
        probabilities = torch.cat([trained.logits(part).softmax(dim=1) for part in pixels.split(AT_ONCE)])
    predicted = probabilities.argmax(dim=1)
    classes = predicted if target is None else torch.full_like(predicted, names.index(target))
    try:
        maps = _maps_of_all(trained, pixels, classes, layers or default_layers(trained))
    except InputError as error:
        if layers:
            raise
        print(f"note: there is the input gradient alone; {error}")
        maps = _maps_of_all(trained, pixels, classes, ())
    rows = []
    for i, image in enumerate(pixels.cpu()):
        guess = f"{names[predicted[i]]} {probabilities[i, predicted[i]]:.1%}"
        tiles = [Tile(draw_map(image, each[i]), [name]) for name, each in maps.items()]
        rows.append([Tile(image, [printable(images[i].name), guess]), *tiles])
    what = "the predicted class" if target is None else target
    save_tiles(rows, out, title=f"{content.path}: evidence for {what}", side=SIDE)
    print(f"see {out}")


def _maps_of_all(trained: TrainedModel, pixels: Tensor, classes: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """`make_maps`, a few images at a time."""
    pairs = zip(pixels.split(AT_ONCE), classes.split(AT_ONCE), strict=True)
    parts = [make_maps(trained, *pair, layers) for pair in pairs]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
