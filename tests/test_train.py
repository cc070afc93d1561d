"""The whole program, on real images."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, torchrun
from runs import without_times

import backbones.datasets as datasets
import backbones.loop as loop
import train
from backbones.checkpoint import read_checkpoint, read_weights
from backbones.checkpoint.__main__ import main as checkpoint_main
from backbones.data import Dataset, Split, train_batch
from backbones.errors import InputError
from backbones.loop import Diverged
from backbones.metric_writer import read_metrics
from experiments import Experiment
from experiments.base import DATA, MODEL, OPTIM, SCHEDULE, make_component
from experiments.run_dir import read_experiment


def test_run_folder(experiment: Experiment, tmp_path: Path) -> None:
    result = train.main(experiment, run_dir=tmp_path / "run")
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["experiment"] == "digits-vit-tiny" and result["model"] == "vit-tiny" and result["steps"] == 12
    assert result["torch"] == torch.__version__ and result["device"] == "cpu" and result["num_processes"] == 1
    assert 0 <= result["top1"] <= result["top5"] <= 1 and result["images_per_second"] > 0
    assert len(result["params_sha256"]) == 64
    assert read_experiment(tmp_path / "run") == experiment
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {
        "config.json",
        "provenance.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "result.json",
        "curves.png",
    }
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 13))
    assert [line["step"] for line in lines if line["split"] == "test"] == [6, 12]
    assert lines[-1]["top1"] == result["top1"]
    norms = {"grad_norm", "update_norm", "param_norm", "learning_rate"}
    assert norms <= lines[0].keys() and all(lines[0][name] > 0 for name in norms - {"update_norm", "learning_rate"})


def test_the_same_again_and_after_dying(experiment: Experiment, tmp_path: Path, monkeypatch) -> None:
    """With dropout and augmentation on; test_resume.py has the rest."""
    straight = train.main(experiment, run_dir=tmp_path / "straight")
    again = train.main(experiment, run_dir=tmp_path / "again")
    assert again["params_sha256"] == straight["params_sha256"]

    def die_at_step_8(*args, step: int, **kwargs):
        if step == 8:
            raise KeyboardInterrupt
        return train_batch(*args, step=step, **kwargs)

    monkeypatch.setattr(loop, "train_batch", die_at_step_8)
    with pytest.raises(KeyboardInterrupt):
        train.main(experiment, run_dir=tmp_path / "resumed")
    steps = []

    def record(*args, step: int, **kwargs):
        steps.append(step)
        return train_batch(*args, step=step, **kwargs)

    monkeypatch.setattr(loop, "train_batch", record)
    torch.rand(1000)  # another history
    resumed = train.main(experiment, run_dir=tmp_path / "resumed", resume="latest")
    assert steps == [6, 7, 8, 9, 10, 11]
    assert resumed["params_sha256"] == straight["params_sha256"]
    assert without_times(tmp_path / "resumed") == without_times(tmp_path / "straight")


OPTIONS = [
    {"seed": 1},
    {"clip": 0.01},
    {"optim": OPTIM["adam"](weight_decay=0.1)},
    {"label_smoothing": 0.3},
    {"accumulate": 4},
    {"precision": "bfloat16"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_reaches_the_step(options: dict, experiment: Experiment, tmp_path: Path) -> None:
    experiment = dataclasses.replace(experiment, steps=3)
    plain = train.main(experiment, run_dir=tmp_path / "plain")
    other = train.main(dataclasses.replace(experiment, **options), run_dir=tmp_path / "other")
    assert plain["params_sha256"] != other["params_sha256"]


def test_unknown_model_in_a_real_process(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, ROOT / "train.py", "--model", "vit-tinny"], cwd=tmp_path, capture_output=True, text=True
    )
    assert finished.returncode == 1 and finished.stdout == ""
    assert finished.stderr.startswith("error: unknown model 'vit-tinny'; did you mean vit-tiny")
    assert finished.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--optim adamm", "unknown optim 'adamm'"),
        ("--data mnist", "unknown data 'mnist'; did you mean fashion-mnist"),
        ("cifar10-resnet", "unknown experiment 'cifar10-resnet'"),
        ("--data fashion-mnist", "Fashion-MNIST is neither in"),
        ("cifar10-resnet18", "CIFAR10 is not in"),
        ("--model.patch-size 5", "a patch size of 5 does not divide images of 16x16 pixels"),
        ("--batch-size 65 --accumulate 2", "a batch of 65 cannot be cut into 2 equal parts"),
        ("--resume", "no run to resume in runs/digits-vit-tiny"),
        ("--device cuda", "torch sees no GPU"),
    ],
)
def test_a_users_mistake_is_one_message(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    with pytest.raises(SystemExit) as exit:
        train.run(arguments.split())
    assert str(exit.value).startswith("error: ") and message in str(exit.value)
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_two_processes_that_cannot_share_a_batch(tmp_path: Path) -> None:
    finished = torchrun(2, ROOT / "train.py", "--batch-size", "33", cwd=tmp_path)
    assert finished.returncode != 0
    assert finished.stderr.count("error: a batch of 33 cannot be cut into 2 equal parts") == 1


def test_an_existing_run_is_never_overwritten(experiment: Experiment, tmp_path: Path, capsys) -> None:
    experiment = dataclasses.replace(experiment, steps=2)
    train.main(experiment, run_dir=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="holds a run already; go on with it by --resume"):
        train.main(experiment, run_dir=tmp_path)
    for other, message in (
        (
            {"model": MODEL["resnet18"]()},
            r"of another model or optimizer:\n  params/head\.weight is float32 \[10, 32\]",
        ),
        (
            {"optim": OPTIM["adam"](lr=0.1)},
            r"cannot go on with other values .*--init-from .*\n  optim\.lr: 0\.001 -> 0\.1",
        ),
        ({"seed": 5}, r"cannot go on with other values .*\n  seed: 0 -> 5"),
    ):
        with pytest.raises(InputError, match=message):
            train.main(dataclasses.replace(experiment, **other), run_dir=tmp_path, resume="latest")
    assert "changed since the checkpoint: model: vit-tiny -> resnet18\n" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_resume_without_checkpoint(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(experiment.to_json()))
    with pytest.raises(InputError, match="there is no checkpoint in"):
        train.main(experiment, run_dir=tmp_path, resume="latest")
    experiment = dataclasses.replace(experiment, steps=2)
    assert train.main(experiment, run_dir=tmp_path, resume="auto")["steps"] == 2  # of a run that died before its first
    assert train.main(experiment, run_dir=tmp_path / "new", resume="auto")["steps"] == 2


def test_a_checkpoint_elsewhere_goes_on_in_a_new_folder(experiment: Experiment, tmp_path: Path) -> None:
    whole = train.main(experiment, run_dir=tmp_path / "whole")
    for name, path in (("six", "whole/checkpoints/6"), ("last", "whole")):
        branch = train.main(experiment, run_dir=tmp_path / name, resume=str(tmp_path / path))
        assert branch["params_sha256"] == whole["params_sha256"]
    lines = [line["step"] for line in without_times(tmp_path / "six")]
    assert lines == [line["step"] for line in without_times(tmp_path / "whole") if line["step"] > 6]
    with pytest.raises(InputError, match="holds a run already"):
        train.main(experiment, run_dir=tmp_path / "whole", resume=str(tmp_path / "whole" / "checkpoints" / "6"))


def test_fine_tuning_starts_from_the_weights_only(experiment: Experiment, tmp_path: Path, monkeypatch, capsys) -> None:
    """From a run, a checkpoint or an exported file; a head of another size is fresh."""
    train.main(dataclasses.replace(experiment, steps=2), run_dir=tmp_path / "source")
    with pytest.raises(SystemExit, match="0"):
        checkpoint_main(["export", str(tmp_path / "source"), "--out", str(tmp_path / "source.safetensors")])
    weights = read_weights(str(tmp_path / "source"))
    sources = [tmp_path / "source", tmp_path / "source" / "checkpoints" / "2", tmp_path / "source.safetensors"]
    digests = []
    for place, source in enumerate(sources):
        tuned = dataclasses.replace(experiment, steps=3, init_from=str(source), seed=5)
        digests.append(train.main(tuned, run_dir=tmp_path / str(place))["params_sha256"])
        began = read_checkpoint(tmp_path / str(place) / "checkpoints" / "0").arrays
        assert all((began[f"params/{name}"] == leaf.numpy()).all() for name, leaf in weights.items())
        assert began["step"] == 0 and not began["opt_state/1/mu/head.weight"].any()
    assert len(set(digests)) == 1
    shutil.rmtree(tmp_path / "source")  # the run has what it needs
    tuned = dataclasses.replace(experiment, steps=4, init_from=str(sources[0]), seed=5)
    assert train.main(tuned, run_dir=tmp_path / "0", resume="latest")["steps"] == 4

    monkeypatch.setitem(DATA, "two-classes", make_component("two-classes", two_classes))
    tuned = dataclasses.replace(tuned, init_from=str(sources[2]), data=DATA["two-classes"]())
    capsys.readouterr()
    train.main(tuned, run_dir=tmp_path / "two")
    assert "of another size here, and fresh: head.weight, head.bias\n" in capsys.readouterr().out
    began = read_checkpoint(tmp_path / "two" / "checkpoints" / "0").arrays
    assert began["params/head.weight"].shape == (2, 32)
    assert (began["params/norm.weight"] == weights["norm.weight"].numpy()).all()
    with pytest.raises(
        InputError, match=r"not weights of this model:\n  cls_token is \(1, 1, 32\), expected \(1, 1, 16\)"
    ):
        model = dataclasses.replace(experiment.model, width=16)
        train.main(dataclasses.replace(tuned, model=model), run_dir=tmp_path / "other")
    with pytest.raises(InputError, match=r"there is no checkpoint in nowhere/checkpoints"):
        train.main(dataclasses.replace(tuned, init_from="nowhere"), run_dir=tmp_path / "other")


def two_classes(*, flip: bool = False) -> Dataset:
    """Digits, odd or even."""
    dataset = datasets.digits()
    train_split, test_split = (Split(split.images, split.labels % 2) for split in (dataset.train, dataset.test))
    return dataset._replace(train=train_split, test=test_split, class_names=("even", "odd"))


def test_a_folder_that_cannot_be_made(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write into .*name another --run-dir"):
        train.main(experiment, run_dir=tmp_path / "file" / "run")


def test_nan_stops_the_run_unless_it_is_skipped(experiment: Experiment, tmp_path: Path, monkeypatch) -> None:
    experiment = dataclasses.replace(experiment, optim=OPTIM["sgd"](lr=1e30), schedule=experiment.schedule, log_every=5)
    with pytest.raises(Diverged, match=r"not finite at step [2-9]\b.*good checkpoint is step 0.*--nonfinite skip"):
        train.main(experiment, run_dir=tmp_path / "stop")
    result = train.main(dataclasses.replace(experiment, nonfinite="skip"), run_dir=tmp_path / "skip")
    assert result["steps"] == 12 and json.loads((tmp_path / "skip" / "result.json").read_text())["steps"] == 12
    lines = read_metrics(tmp_path / "skip" / "metrics.jsonl")
    assert any(line.get("nonfinite") for line in lines)


def test_the_last_good_checkpoint_is_named(experiment: Experiment, tmp_path: Path, monkeypatch) -> None:
    make_loss_fn = train.make_loss_fn

    def make_bad_loss_fn(*args, **kwargs):
        loss_fn, calls = make_loss_fn(*args, **kwargs), []

        def bad_loss_fn(params, model_state, batch):
            calls.append(None)
            loss, aux = loss_fn(params, model_state, batch)
            return (loss * torch.nan if len(calls) == 10 else loss), aux

        return bad_loss_fn

    monkeypatch.setattr(train, "make_loss_fn", make_bad_loss_fn)
    with pytest.raises(Diverged, match=r"not finite at step 10; the last good checkpoint is step 6 in .*checkpoints"):
        train.main(dataclasses.replace(experiment, log_every=7), run_dir=tmp_path)
    monkeypatch.undo()
    assert train.main(experiment, run_dir=tmp_path, resume="latest")["steps"] == 12


def test_the_average_is_what_is_evaluated(experiment: Experiment, tmp_path: Path) -> None:
    """The training itself is the same to the last bit."""
    schedule = SCHEDULE["constant"]()
    plain = train.main(dataclasses.replace(experiment, schedule=schedule), run_dir=tmp_path / "plain")
    averaged = train.main(dataclasses.replace(experiment, schedule=schedule, ema=0.99), run_dir=tmp_path / "averaged")
    assert averaged["params_sha256"] == plain["params_sha256"] and averaged["loss"] != plain["loss"]
    still = train.main(dataclasses.replace(experiment, schedule=schedule, ema=0.0), run_dir=tmp_path / "still")
    assert still["loss"] == plain["loss"]


def test_experiments_compose_in_python(experiment: Experiment, tmp_path: Path) -> None:
    composed = dataclasses.replace(
        experiment, data=DATA["digits"](crop_padding=0), optim=dataclasses.replace(experiment.optim, lr=1e-4), steps=2
    )
    assert train.main(composed, run_dir=tmp_path)["steps"] == 2
    assert os.environ.get("JAX_PLATFORMS") == "cpu"
