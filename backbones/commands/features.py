"""`backbones features RUN [DATA]`: the features of a data set as a table, and what they are good for."""

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

import backbones.distributed as distributed
import backbones.tree as tree
from backbones.commands.options import CheckpointName, DataRoot, DeviceName, RunPath, checked_options, read_dataset
from backbones.commands.probe import format_accuracies
from backbones.errors import InputError, check_known
from backbones.ranges import Count
from backbones.run.analysis.feature_table import check_new, write_table
from backbones.run.analysis.features import check_image_shape, extract, layer_shapes
from backbones.run.analysis.probe import probe_table
from backbones.run.analysis.trained_model import load_model, read_trained
from backbones.run.checkpoint import parse_saved
from backbones.run.files import write_json
from backbones.torch_settings import in_full_float32


@in_full_float32()
@checked_options
def features(
    run: RunPath,
    data: Annotated[Positional[str | None], tyro.conf.arg(metavar="[DATA]")] = None,
    /,
    *,
    layer: str = "pooled",
    out: Path = Path("features.parquet"),
    checkpoint: CheckpointName = "latest",
    batch_size: Count = 500,
    knn: bool = True,
    probe: bool = True,
    device: DeviceName = "auto",
    data_root: DataRoot = None,
) -> None:
    """Write the features of all images of a data set as a table, and measure how well they tell the classes apart.

    One row per image of both splits: split, index, file, label, class, predicted class with its probability, and
    the vector. Images are not augmented. Beside the table, in a JSON file of its name, are the accuracies of the test
    images by 20 nearest training images and by a linear classifier, whose regularisation is chosen on a fifth of the
    training images.

    Args:
        run: a run folder, or one checkpoint in it.
        data: a data set, by name or as module:function, with images of the size that the model takes; its classes may
            be others, and grey images are repeated in all channels. None for that of the run.
        layer: stem, stage1, ..., block1, ... or pooled, what enters the head; of maps the mean over positions, of
            tokens the mean over tokens. An unknown name lists those of the model.
        out: file to write, .parquet or .npz; none is ever replaced.
        checkpoint: which checkpoint of the run.
        batch_size: images per batch.
        knn: measure nearest neighbours.
        probe: measure a linear classifier.
        device: where to compute; auto is the GPU where there is one.
        data_root: where the data set is; None for where it was when the run was trained.

    Raises:
        InputError: a file, checkpoint or data set cannot be read, does not fit the model, or `out` exists.
    """
    check_new(out)
    content, experiment = read_trained(run, parse_saved(checkpoint))
    path, torch_device = content.path, distributed.init(device)
    trained = load_model(content, experiment, torch_device)
    check_known("layer", layer, layer_shapes(trained))
    name, dataset = read_dataset(data, experiment.data, torch_device, data_root)
    check_image_shape(dataset.info, trained.info, name)
    about = {
        "checkpoint": str(path.absolute()),
        "weights": tree.sha256(trained.params),
        "data": data or experiment.data.path,
        "layer": layer,
        "train": dataset.train.digest(),
        "test": dataset.test.digest(),
    }
    table = extract(trained, dataset, layer, batch_size=batch_size, about=about)
    write_table(out, table)
    print(f"{len(table.label)} vectors of {table.features.shape[1]} numbers, {layer} of {path} on {name}: {out}")
    found = probe_table(table, knn=knn, linear=False)
    if probe:
        try:
            found |= probe_table(table, knn=False)
        except InputError as error:  # the table is written
            print(f"note: {error}")
            probe = False
    write_json(out.with_suffix(".json"), {**about, **found})
    if knn or probe:
        print(format_accuracies(found))
