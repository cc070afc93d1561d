import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.processes import run as run_process
from helpers.trees import write_folder
from PIL import Image
from sklearn.metrics import confusion_matrix, f1_score, recall_score, top_k_accuracy_score

from backbones.commands.evaluate import evaluate
from backbones.component import Use, use
from backbones.data import Dataset, digits, image_folder, in_memory
from backbones.data.image_files.images import read_images
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.losses import binary_cross_entropy
from backbones.metrics import calibration, in_top_k
from backbones.run.analysis.model_evaluation import evaluate_model, load_predictor, plot_confusion
from backbones.run.analysis.trained_model import read_trained
from backbones.run.checkpoint import read_checkpoint
from backbones.run.run import run
from backbones.types import CPU


def test_metrics_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (53,), generator=generator)  # none of class 6
    logits = torch.randn(53, 7, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 7)
    split = torch.arange(53, dtype=torch.uint8)[:, None, None, None], labels
    source = in_memory(split, split, tuple("abcdefg"), CPU).test
    evaluation = evaluate_model(lambda images: logits[images[:, 0, 0, 0].long()], source, batch_size=8, device=CPU)
    guesses = logits.argmax(dim=1)
    assert evaluation.confusion.tolist() == confusion_matrix(labels, guesses, labels=range(7)).tolist()
    mistakes = evaluation.confusion.numpy() * (1 - np.eye(7, dtype=int))
    wanted = [(row.argmax(), row.max()) if row.any() else None for row in mistakes]
    assert evaluation.confused_with == wanted and wanted[6] is None
    assert evaluation.top1 == pytest.approx((guesses == labels).double().mean().item())
    assert evaluation.top5 == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(7)))
    assert evaluation.loss == pytest.approx(torch.nn.functional.cross_entropy(logits.double(), labels).item(), rel=1e-6)
    recall = recall_score(labels, guesses, labels=range(6), average=None)
    assert evaluation.scores.recall[:6].tolist() == pytest.approx(recall.tolist())
    assert evaluation.scores.recall[6].isnan()
    summary = evaluation.summary
    assert summary["balanced_accuracy"] == pytest.approx(recall.mean())
    assert summary["macro_f1"] == pytest.approx(f1_score(labels, guesses, average="macro"))
    assert summary["calibration_error"] == calibration(logits, labels).error > 0.05


def test_a_run_evaluates_as_it_did_in_training(finished: Path, tmp_path: Path, capsys) -> None:
    """The average, with BatchNorm statistics estimated anew."""
    evaluate(finished, checkpoint="best", out=tmp_path / "out", batch_size=100)
    result = json.loads((finished / "result.json").read_text())
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    for name in ("top1", "top5"):
        assert report[name] == result[name]
    assert report["loss"] == pytest.approx(result["loss"], rel=1e-6)
    confusion = np.array(report["confusion"])
    assert confusion.sum() == 364 and confusion.trace() / 364 == pytest.approx(result["top1"])
    assert report["class_accuracy"] == (confusion.diagonal() / confusion.sum(axis=1)).tolist()
    assert report["balanced_accuracy"] == pytest.approx(np.mean(report["class_accuracy"]))
    assert report["class_precision"] == [  # null for a class that was never predicted
        hits / all if all else None for hits, all in zip(confusion.diagonal(), confusion.sum(axis=0), strict=True)
    ]
    counts, confidence, accuracy = report["calibration"].values()
    gaps = [n * abs(a - c) for n, a, c in zip(counts, accuracy, confidence, strict=True) if n]
    assert sum(counts) == 364 and report["calibration_error"] == pytest.approx(sum(gaps) / 364)
    for name in ("confusion.png", "calibration.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 400 and len(picture.getcolors(2**20)) > 20
    shown = capsys.readouterr().out
    assert f"top-1 {result['top1']:.2%}  top-5 {result['top5']:.2%}  loss {result['loss']:.4f}" in shown
    assert f"macro F1 {report['macro_f1']:.2%}  calibration error {report['calibration_error']:.2%}\n" in shown
    assert sum(line.split()[:1] == [name] for line in shown.splitlines() for name in report["classes"]) == 10


def test_views_and_loss_are_those_of_the_run_unless_others_are_named(experiment: Experiment, tmp_path, capsys) -> None:
    experiment = dataclasses.replace(experiment, loss=use(binary_cross_entropy), tta="flip", steps=2)
    result = run(experiment, run_dir=tmp_path)
    images = digits().test.read(torch.arange(2), torch.arange(2))
    reports = {}
    for tta in ("auto", "flip", "none"):
        evaluate(tmp_path, tta=tta)
        reports[tta] = json.loads((tmp_path / "evaluation.json").read_text())
        assert ("digits test, test-time augmentation flip:" in capsys.readouterr().out) == (tta != "none")
    assert reports["auto"] == reports["flip"] and reports["flip"]["loss"] == pytest.approx(result["loss"], rel=1e-6)
    assert (reports["auto"]["tta"], reports["none"]["tta"]) == ("flip", "none")
    assert reports["none"]["loss"] != reports["flip"]["loss"] < 1  # of cross-entropy it would be log 10
    predict_one, predict_flip = (
        load_predictor(read_checkpoint(tmp_path / "checkpoints" / "2"), dataclasses.replace(experiment, tta=tta), CPU)
        for tta in ("none", "flip")
    )
    torch.testing.assert_close(predict_flip(images), (predict_one(images) + predict_one(images.flip(3))) / 2)


def test_image_files(finished: Path, tmp_path: Path, capsys) -> None:
    checkpoint = read_checkpoint(finished / "checkpoints" / "4")
    predict = load_predictor(checkpoint, Experiment.from_json(checkpoint.manifest.experiment), CPU)
    images = digits().test.read(torch.arange(3), torch.arange(3))
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    assert torch.equal(read_images(paths, digits().info, may_resize=False), images)
    grey = digits().info._replace(image_shape=(1, 16, 16))
    assert torch.equal(read_images(paths, grey, may_resize=False), images[:, :1])
    evaluate(finished, tuple(paths))
    probabilities = predict(images).softmax(dim=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for line, path, row in zip(lines, paths, probabilities, strict=True):
        name, *guesses = line.split()
        best = row.argmax().item()
        assert name == str(path) and guesses[:2] == [str(best), f"{row[best]:.1%}"]
    Image.new("L", (32, 32), 200).save(tmp_path / "large.png")
    with pytest.raises(InputError, match=r"large\.png has 32x32 pixels and the model takes 16x16; scale it with --res"):
        evaluate(finished, (tmp_path / "large.png",))
    scaled = read_images([tmp_path / "large.png"], digits().info, may_resize=True)
    assert scaled.shape == (1, 3, 16, 16) and scaled.unique().tolist() == [200]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "cifar11"}, "unknown data 'cifar11'; did you mean cifar10"),
        ({"checkpoint": "3"}, "there is no checkpoint 3 in"),
        ({"batch_size": 0}, "--batch-size is 0; it must be 1 or more"),
        ({"tta": "mirror"}, "--tta is 'mirror'; it must be one of auto, none, flip, flip+shift"),
        (
            {"images": (Path("a.png"),), "data": "digits"},
            "--data, --data.root, --split and --out are for a data set; the scores of image",
        ),
        ({"images": (Path("a.png"),), "split": "train"}, "--split and --out are for a data set; the scores of image"),
        ({"images": (Path("a.png"),), "data_root": "x"}, "--data.root, --split and --out are for a data set"),
        ({"resize": True}, "--resize is for image files"),
        ({"images": (Path("absent.png"),)}, "absent.png cannot be read: No such file or directory"),
        ({"images": (Path(__file__),)}, "test_evaluate.py cannot be read: it is not an image, or is damaged"),
    ],
    ids=str,
)
def test_bad_input(options: dict, message: str, finished: Path) -> None:
    with pytest.raises(InputError) as error:
        evaluate(finished, options.pop("images", ()), **options)
    assert message in str(error.value)


def cropped(device: torch.device = CPU) -> Dataset:
    """Digits without their last column."""
    splits = [(source.read(torch.arange(50), torch.arange(50)), source.labels[:50]) for source in digits(device)]
    return in_memory(*((images[..., 1:], labels) for images, labels in splits), tuple("0123456789"), device)


def fewer(device: torch.device = CPU) -> Dataset:
    """Digits, odd or even."""
    splits = [(source.read(torch.arange(50), torch.arange(50)), source.labels[:50]) for source in digits(device)]
    return in_memory(*((images, labels % 2) for images, labels in splits), ("even", "odd"), device)


def test_nan_is_wrong_as_in_training() -> None:
    split = torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.arange(6) % 2
    source = in_memory(split, split, ("a", "b"), CPU).test
    logits = torch.tensor([[math.nan, math.nan], [0.0, 1.0], [math.nan, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    evaluation = evaluate_model(lambda images: logits, source, batch_size=6, device=CPU)
    assert evaluation.top1 == in_top_k(logits, source.labels, 1).double().mean() == 3 / 6
    assert evaluation.confusion.trace() == 3 and evaluation.confusion.sum() == 6


def unlabelled(device: torch.device = CPU) -> Dataset:
    """Digits, of which some have no label, as a source may say."""
    dataset = digits(device)
    return dataset._replace(test=dataset.test._replace(labels=dataset.test.labels - 1))


def test_labels_that_are_no_classes(finished: Path) -> None:
    with pytest.raises(InputError, match=r"\d+ of the 364 test labels are outside 0 to 9: -1"):
        evaluate(finished, data=f"{__name__}:unlabelled")


def test_files_are_written_into_the_run_folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a checkpoint is named from within it."""
    shutil.copytree(finished, tmp_path / "run")
    step = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    for folder, name in (("checkpoints", str(step)), (f"checkpoints/{step}", ".")):
        monkeypatch.chdir(tmp_path / "run" / folder)
        evaluate(Path(name))
        (tmp_path / "run" / "evaluation.json").unlink()


def test_a_model_whose_code_was_changed(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backbones.models.airbench.WIDTHS", (64, 128, 256))
    message = r"is of another airbench than the code has now: of stages.1.conv1.weight, .* use the code that it was"
    with pytest.raises(InputError, match=message):
        evaluate(finished)


def test_another_data_set_must_fit(finished: Path) -> None:
    with pytest.raises(InputError, match=r"cropped has images of \(3, 16, 15\) and 10 classes; the model was "):
        evaluate(finished, data=f"{__name__}:cropped")
    with pytest.raises(InputError, match=r"fewer has .* and 2 classes; the model was trained for .* and 10 cl"):
        evaluate(finished, data=f"{__name__}:fewer")


def test_image_files_are_classified_without_the_data_set(finished: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def no_data(*args: object, **kwargs: object) -> None:
        raise AssertionError("the data set was read")

    make = Use.make
    monkeypatch.setattr(Use, "make", lambda self, **given: no_data() if self.name == "digits" else make(self, **given))
    Image.new("L", (16, 16), 200).save(tmp_path / "grey.png")
    evaluate(finished, (tmp_path / "grey.png",))
    assert capsys.readouterr().out.startswith(f"{tmp_path}/grey.png")


def test_files_are_read_and_classified_batch_by_batch(finished: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """So that thousands of them need no more memory than a few."""
    Image.new("L", (16, 16), 200).save(tmp_path / "x.png")
    sizes = []

    def read(paths: Sequence[Path], *args: object, **kwargs: object) -> torch.Tensor:
        sizes.append(len(paths))
        return read_images(paths, *args, **kwargs)

    monkeypatch.setattr("backbones.commands.evaluate.read_images", read)
    evaluate(finished, (tmp_path / "x.png",) * 5, batch_size=2)
    assert sizes == [2, 2, 1] and len(set(capsys.readouterr().out.splitlines())) == 1


def test_training_images_are_evaluated_by_their_center(experiment: Experiment, tmp_path: Path) -> None:
    files = use(image_folder, root=str(write_folder(tmp_path / "photos", size=(30, 40))), image_size=16, crop="random")
    run(dataclasses.replace(experiment, data=files, steps=2), run_dir=tmp_path / "run")
    evaluate(tmp_path / "run", split="train")
    predict = load_predictor(*read_trained(tmp_path / "run"), CPU)
    losses = {
        crop: evaluate_model(predict, files.replace(crop=crop).make(device=CPU).train, batch_size=500, device=CPU).loss
        for crop in ("center", "random")
    }
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["loss"] == losses["center"]
    assert losses["center"] != losses["random"]


def test_it_computes_in_float32_proper(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = []

    def spy(*args: object, **kwargs: object) -> object:
        allowed.append(torch.backends.cudnn.allow_tf32)
        return evaluate_model(*args, **kwargs)

    monkeypatch.setattr("backbones.commands.evaluate.evaluate_model", spy)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    evaluate(finished, out=tmp_path)
    assert allowed == [False] and torch.backends.cudnn.allow_tf32


@pytest.mark.slow
def test_as_a_command(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    command = ["-m", "backbones", "evaluate", "run"]
    done = run_process(command, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert {"evaluation.json", "confusion.png", "calibration.png"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4" / "state")
    done = run_process(command, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: the checkpoint run/checkpoints/4 is corrupt: state/")
    assert done.stderr.count("\n") == 1


def reordered(device: torch.device = CPU) -> Dataset:
    split = torch.zeros(10, 3, 16, 16, dtype=torch.uint8), torch.arange(10)
    return in_memory(split, split, tuple("1023456789"), device)


def test_classes_in_another_order_are_refused(finished: Path) -> None:
    with pytest.raises(
        InputError, match="reordered has the classes in another order than the model, such as 0: 1, 0 are"
    ):
        evaluate(finished, data=f"{__name__}:reordered")


def test_files_are_written_before_lines_are_printed(finished: Path, tmp_path: Path, monkeypatch) -> None:
    """`evaluate RUN | head` closes the pipe."""
    monkeypatch.setattr("backbones.commands.evaluate._print_evaluation", mock.Mock(side_effect=BrokenPipeError))
    with pytest.raises(BrokenPipeError):
        evaluate(finished, out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.json", "confusion.png", "calibration.png"}


def test_a_folder_that_cannot_be_written_is_found_at_once(finished: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("backbones.commands.evaluate.evaluate_model", mock.Mock(side_effect=AssertionError))
    (file := tmp_path / "scores.json").touch()
    for out in (file, file / "folder", Path("/proc/1")):
        with pytest.raises(InputError, match=f"cannot write into {out}: .*; name another folder by --out"):
            evaluate(finished, out=out)


def test_a_copied_checkpoint_needs_a_folder_to_write_into(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "checkpoints" / "4", copied := tmp_path / "backup" / "best")
    with pytest.raises(InputError, match="best is in no run folder; name by --out where to write"):
        evaluate(copied)
    evaluate(copied, out=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"backup", "out"}


def test_the_worst_mistake_has_a_probability() -> None:
    split = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    logits = torch.tensor([[math.nan, math.nan], [0.0, 1.0], [0.0, 2.0]])
    source = in_memory(split, split, ("a", "b"), CPU).test
    evaluation = evaluate_model(lambda images: logits, source, batch_size=3, device=CPU)
    assert [mistake.index for mistake in evaluation.worst_mistakes(3)] == [2, 1, 0]


def test_long_names_leave_room_for_the_matrix(tmp_path: Path) -> None:
    """matplotlib warns where they leave none."""
    split = torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.arange(2)
    names = tuple(f"Corn_(maize)___Cercospora_leaf_spot Gray_leaf_spot {i}" for i in range(2))
    source = in_memory(split, split, names, CPU).test
    evaluation = evaluate_model(lambda images: torch.eye(2), source, batch_size=2, device=CPU)
    plot_confusion(evaluation, names, tmp_path / "a.png")
