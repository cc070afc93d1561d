"""`backbones evaluate RUN`: accuracy by class, confusion, calibration; with `IMAGE ...` after it, classifies files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from tyro.conf import Positional

import backbones.distributed as distributed
from backbones.commands.options import CheckpointName, DataRoot, DeviceName, RunPath, checked_options, read_dataset
from backbones.data import DataInfo
from backbones.data.image_files.images import read_images
from backbones.data.image_files.listing import printable
from backbones.errors import InputError
from backbones.ranges import Count
from backbones.run.analysis.model_evaluation import (
    Evaluation,
    Predict,
    check_fits,
    check_writable,
    class_rows,
    evaluate_model,
    load_predictor,
    write_evaluation,
)
from backbones.run.analysis.trained_model import read_trained
from backbones.run.checkpoint import parse_saved, run_folder
from backbones.torch_settings import in_full_float32
from backbones.tta import Tta


@in_full_float32()
@checked_options
def evaluate(
    run: RunPath,
    images: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[IMAGE ...]")] = (),
    /,
    *,
    data: str | None = None,
    split: Literal["test", "train"] = "test",
    checkpoint: CheckpointName = "latest",
    batch_size: Count = 500,
    tta: Literal["auto"] | Tta = "auto",
    resize: bool = False,
    device: DeviceName = "auto",
    out: Path | None = None,
    data_root: DataRoot = None,
) -> None:
    """Evaluate a checkpoint: accuracy, loss, F1, calibration, the scores of each class, confusion; or classify files.

    Classifying needs the checkpoint alone; the training data may be gone.

    Args:
        run: a run folder, or one checkpoint in it.
        images: image files to classify, instead of the data set.
        data: another data set of the same shape and number of classes, by name or as module:function; None for that of
            the run.
        split: which split of the data set.
        checkpoint: which checkpoint of the run.
        batch_size: images per batch.
        tta: test-time augmentation, the views over which logits are averaged; auto is that of the run.
        resize: scale image files of another size to that of the model.
        device: where to compute; auto is the GPU where there is one.
        out: folder for evaluation.json, confusion.png and calibration.png; None for the run folder.
        data_root: where the data set is; None for where it was when the run was trained.

    Raises:
        InputError: a file, checkpoint or data set cannot be read, or does not fit the model.
    """
    content, experiment = read_trained(run, parse_saved(checkpoint))
    path, info, torch_device = content.path, content.manifest.info, distributed.init(device)
    if tta != "auto":
        experiment = dataclasses.replace(experiment, tta=tta)
    predict = load_predictor(content, experiment, torch_device)
    if images:
        if split != "test" or any(option is not None for option in (out, data, data_root)):
            raise InputError(
                "--data, --data.root, --split and --out are for a data set; the scores of image files are printed"
            )
        for i in range(0, len(images), batch_size):
            _classify(predict, info, images[i : i + batch_size], resize=resize)
        return
    if resize:
        raise InputError("--resize is for image files; those of a data set have the size that the model takes")
    folder = out or run_folder(path)
    check_writable(folder)
    name, dataset = read_dataset(data, experiment.data, torch_device, data_root)
    check_fits(dataset, info, name)
    source = dataset.train if split == "train" else dataset.test
    evaluation = evaluate_model(
        predict, source, batch_size=batch_size, device=torch_device, loss=experiment.make_loss()
    )
    about = {"checkpoint": str(path), "data": data or experiment.data.name, "split": split, "tta": experiment.tta}
    write_evaluation(folder, evaluation, info.class_names, about)
    _print_evaluation(evaluation, info.class_names, about)
    print(f"\nsee {folder}/evaluation.json, confusion.png and calibration.png")


def _classify(predict: Predict, info: DataInfo, paths: Sequence[Path], *, resize: bool) -> None:
    logits = predict(read_images(paths, info, may_resize=resize)).to(torch.float32)
    top = logits.softmax(dim=1).topk(min(5, info.num_classes), dim=1)
    names = [printable(str(path)) for path in paths]
    width = max(map(len, names))
    for name, values, classes in zip(names, top.values.tolist(), top.indices.tolist(), strict=True):
        guesses = [f"{info.class_names[k]} {value:.1%}" for value, k in zip(values, classes, strict=True)]
        print(f"{name:{width}s}  {'  '.join(guesses)}")


def _print_evaluation(evaluation: Evaluation, class_names: Sequence[str], about: dict[str, str]) -> None:
    views = "" if about["tta"] == "none" else f", test-time augmentation {about['tta']}"
    print(f"{about['checkpoint']} on the {len(evaluation.labels)} images of {about['data']} {about['split']}{views}:")
    print("top-1 {top1:.2%}  top-5 {top5:.2%}  loss {loss:.4f}".format(**evaluation.summary))
    text = (
        "balanced accuracy {balanced_accuracy:.2%}  macro F1 {macro_f1:.2%}  calibration error {calibration_error:.2%}"
    )
    print(text.format(**evaluation.summary), end="\n\n")
    width = max(len("class"), *(len(name) for name in class_names))
    print(f"{'class':{width}s}  images  accuracy  precision       F1  most often confused with")
    for row in class_rows(evaluation, class_names):
        recall, precision, f1 = ("-" if each is None else f"{each:.2%}" for each in (row.recall, row.precision, row.f1))
        text = f"{row.name:{width}s}  {row.images:6d}  {recall:>8s}  {precision:>9s}  {f1:>7s}  {row.confused}"
        print(text.rstrip())
