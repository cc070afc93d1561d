"""`backbones export RUN --format FORMAT`: the weights of a checkpoint for other programs."""

import textwrap
from functools import partial
from pathlib import Path
from typing import Literal

from backbones.commands.options import CheckpointName, RunPath
from backbones.run.analysis.trained_model import read_trained
from backbones.run.checkpoint import parse_saved, run_folder
from backbones.run.export.export import export as export_checkpoint, read_test_images
from backbones.run.export.formats import FORMATS

NUM_IMAGES = 100
"""Held-out images with which an exported model is compared."""


def export(
    run: RunPath,
    /,
    *,
    format: Literal["safetensors", "torch", "pt2", "onnx", "aoti", "timm", "torchvision"],
    checkpoint: CheckpointName = "latest",
    out: Path | None = None,
    fold: bool = False,
    license: str | None = None,
) -> None:
    """Export the weights of a checkpoint (their average, where the run keeps one) for other programs.

    safetensors and torch hold the weights under our names; timm and torchvision under theirs, for a model that they
    have. pt2 (torch.export), onnx and aoti (compiled for this machine's processor) hold a program: images [N, C, H, W]
    uint8 to logits, with normalization inside. All hold class names, mean and standard deviation.

    A file is moved into place only after a separate process, without this library, has read it and compared: weights
    bit for bit, or logits of 100 held-out images up to rounding.

    Args:
        run: a run folder, or one checkpoint in it.
        format: what is written.
        checkpoint: which checkpoint of the run.
        out: a new file; None for one in the run folder, named after the format.
        fold: fold each BatchNorm into the convolution before it; for pt2, onnx and aoti.
        license: text for the metadata, such as MIT.

    Raises:
        InputError: the file exists, the model has no such format, or what is read again differs.
    """
    content, experiment = read_trained(run, parse_saved(checkpoint))
    read_images = partial(read_test_images, experiment, content.manifest.info, NUM_IMAGES)
    out = out or run_folder(content.path) / FORMATS[format].file_name
    done = export_checkpoint(content, experiment, read_images, out, format=format, fold=fold, license=license)
    print(f"wrote {content.path} to {out} ({out.stat().st_size / 1e6:,.1f} MB)")
    if done.num_images:
        print(
            f"checked in another process: logits of {done.num_images} images differ by at most "
            f"{done.difference:.2g}, and {done.num_equal} have the same class"
        )
    else:
        print("checked in another process: every tensor is equal")
    imports, load, result = done.lines
    shown = f"{imports}\n\npath = {str(out)!r}\n{load}" + (f"\nlogits = {result}" if done.num_images else "")
    print("\n" + textwrap.indent(shown, "    "))
