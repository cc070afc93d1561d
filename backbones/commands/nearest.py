"""`backbones nearest FEATURES IMAGE ...`: the images of a data set that are nearest to image files, as one picture."""

from pathlib import Path
from typing import Literal

import torch

import backbones.distributed as distributed
import backbones.tree as tree
from backbones.commands.options import (
    AT_ONCE,
    DataRoot,
    DeviceName,
    FeaturesPath,
    ImagePaths,
    checked_options,
    read_dataset,
)
from backbones.data.image_files.images import read_images
from backbones.data.image_files.listing import printable
from backbones.errors import InputError
from backbones.ranges import Count
from backbones.run.analysis.feature_table import read_table
from backbones.run.analysis.features import to_vectors
from backbones.run.analysis.pictures import Tile, check_picture, save_tiles
from backbones.run.analysis.probe import find_nearest
from backbones.run.analysis.trained_model import load_model, read_trained
from backbones.torch_settings import in_full_float32


@in_full_float32()
@checked_options
def nearest(
    features: FeaturesPath,
    images: ImagePaths,
    /,
    *,
    split: Literal["train", "test"] = "train",
    k: Count = 8,
    out: Path = Path("nearest.png"),
    resize: bool = False,
    device: DeviceName = "auto",
    data_root: DataRoot = None,
) -> None:
    """Draw the images of a data set whose features are nearest to those of image files, by cosine: one row per file.

    The features of the data set are read; those of the files are computed by the same checkpoint.

    Args:
        features: a file of `backbones features`.
        images: image files.
        split: where to look for them.
        k: how many.
        out: picture to write.
        resize: scale image files of another size to that of the model.
        device: where to compute; auto is the GPU where there is one.
        data_root: where the data set is; None for where it was when the run was trained.

    Raises:
        InputError: a file cannot be read, or its checkpoint or data set is not there any more or has changed.
    """
    if not images:
        raise InputError("no image files are named; give some after the features")
    check_picture(out)
    table, torch_device = read_table(features), distributed.init(device)
    try:
        content, experiment = read_trained(Path(table.about["checkpoint"]))
    except InputError as error:
        raise InputError(
            f"{features} was made with a checkpoint that cannot be read: {error}. Make it anew by `backbones features`"
        ) from error
    trained = load_model(content, experiment, torch_device)
    name, dataset = read_dataset(table.about["data"], experiment.data, torch_device, data_root)
    source, rows = getattr(dataset, split), table.of_split(split)
    if split not in table.about:
        raise InputError(f"{features} is of an earlier version of this program; write it anew")
    if tree.sha256(trained.params) != table.about["weights"] or source.digest() != table.about[split]:
        raise InputError(
            f"{features} was made with other weights than those of {content.path}, or other data than {name}"
        )
    pixels = read_images(images, trained.info, may_resize=resize)
    with torch.no_grad():
        parts = [to_vectors(trained.features(part)[table.about["layer"]]).cpu() for part in pixels.split(AT_ONCE)]
    vectors = torch.cat(parts)
    cosine, found = find_nearest(torch.from_numpy(rows.features), vectors, k)
    lines = []
    for image, file, values, index in zip(pixels, images, cosine.tolist(), found, strict=True):
        numbers, index = index.tolist(), index.to(source.labels.device)
        neighbours = source.read(index, torch.zeros_like(index))
        captions = [
            [rows.class_name[i], f"{value:.3f}", rows.file_name[i] or f"#{i}"]
            for i, value in zip(numbers, values, strict=True)
        ]
        lines.append([Tile(image, [printable(file.name)]), *map(Tile, neighbours, captions)])
    title = f"nearest {split} images of {name} by {table.about['layer']} of {content.path}: class, cosine"
    save_tiles(lines, out, title=title)
    print(f"see {out}")
