"""`backbones profile [MODEL ...]`: parameters, multiply-accumulates, activations and time of models."""

import inspect
import json as json_format
from collections.abc import Mapping
from typing import Any, Literal

import tyro
from tqdm import tqdm

import backbones.distributed as distributed
from backbones.commands.options import DeviceName, checked_options
from backbones.component import use
from backbones.errors import InputError, check_known
from backbones.models import MODELS, Model
from backbones.models.cost import count_activations, layer_table, measure_cost, measure_latency
from backbones.ranges import Count
from backbones.torch_settings import in_full_float32


@in_full_float32()
@checked_options
def profile(
    models: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    image_size: Count = 32,
    channels: Count = 3,
    num_classes: Count = 10,
    stem: Literal["cifar", "imagenet"] | None = None,
    patch_size: Count | None = None,
    batch_size: Count = 32,
    device: DeviceName = "auto",
    depth: Count | None = None,
    json: bool = False,
) -> None:
    """Parameters, multiply-accumulates (MACs) and activations per image, and the time of a forward pass.

    Args:
        models: names of models; none for all.
        image_size: height and width of an image, pixels.
        channels: channels of an image.
        num_classes: number of classes.
        stem: first layers of ConvNets; None for the default of each model.
        patch_size: side of a patch of models that have patches, pixels; None for the default of each model.
        batch_size: images per timed forward pass.
        device: where to time it; auto is the GPU where there is one.
        depth: show the layers of one model, down to this depth, instead of the table.
        json: print a list of objects instead of a table.

    Raises:
        InputError: a name is unknown, or a model cannot be made like this.
    """
    names = [check_known("model", name, MODELS) for name in models] or list(MODELS)
    options = {name: value for name, value in (("stem", stem), ("patch_size", patch_size)) if value is not None}
    for option in options:
        if not any(option in inspect.signature(MODELS[name]).parameters for name in names):
            raise InputError(f"--{option.replace('_', '-')} is not for {' or '.join(names)}, which has no such field")
    image_shape = (channels, image_size, image_size)
    given = {"image_shape": image_shape, "num_classes": num_classes, **options}
    if depth is not None:
        if len(names) != 1 or json:
            raise InputError("--depth shows the layers of one model, for reading: name one, and leave out --json")
        print(layer_table(_make(names[0], given), image_shape, depth=depth))
        return
    torch_device = distributed.init(device)
    made = {name: _make(name, given) for name in names}  # all of them before any is timed
    rows = []
    for name, model in tqdm(made.items(), unit="model", disable=None):
        row = {"model": name, **measure_cost(model, image_shape)._asdict()}
        row["activations"] = count_activations(model, image_shape)
        row["milliseconds"] = 1e3 * measure_latency(model, image_shape, batch_size=batch_size, device=torch_device)
        rows.append({**row, "batch_size": batch_size, "device": torch_device.type})
    if json:
        print(json_format.dumps(rows, indent=2))
        return
    print(f"| model | parameters | MACs (M) | activations (M) | ms for {batch_size} images ({torch_device.type}) |")
    print("|---|--:|--:|--:|--:|")
    for row in rows:
        macs, activations, milliseconds = row["macs"] / 1e6, row["activations"] / 1e6, row["milliseconds"]
        print(f"| {row['model']} | {row['num_params']:,} | {macs:,.1f} | {activations:,.2f} | {milliseconds:,.1f} |")


def _make(name: str, given: Mapping[str, Any]) -> Model:
    try:
        return use(MODELS[name]).make(**given)  # ignores what is not a parameter of it
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
