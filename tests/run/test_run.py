"""Whole runs, on real images."""

import dataclasses
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Literal
from unittest import mock

import pytest
import torch
import torchvision.models
from helpers.processes import run as run_process, run_ranks
from helpers.runs import ROOT, newest, without_times
from torch import Tensor

import backbones.commands as commands
import backbones.experiment
import backbones.machine as machine
import backbones.tree as tree
from backbones.augment import identity
from backbones.commands.audit import audit
from backbones.commands.exit import run_command
from backbones.commands.train import main
from backbones.component import use
from backbones.data import Dataset, digits, fashion_mnist
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.models import LIBRARIES
from backbones.models.resnet import resnet18
from backbones.optim import adam, sgd
from backbones.optim.schedule import constant
from backbones.run.checkpoint import Checkpoints, list_steps, read_checkpoint, saved_weights
from backbones.run.config import list_changes, read_experiment
from backbones.run.files import read_json
from backbones.run.loop import Diverged
from backbones.run.metric_lines import read_metrics
from backbones.run.preemption import Preempted
from backbones.run.resume import check_run_dir
from backbones.run.run import run
from backbones.run.run_dir import new_run_dir
from backbones.run.start_weights import read_weights, warn_of_weights
from backbones.torch_settings import torch_settings_kept
from backbones.types import CPU
from experiments import EXPERIMENTS


def test_run_folder(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = [machine.peak_memory(CPU), 2 * machine.peak_memory(CPU)]
    monkeypatch.setattr(machine, "peak_memory", lambda device: peaks.pop(0))
    result = run(experiment, run_dir=tmp_path / "run")
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["experiment"] == "digits-vit-tiny" and result["model"] == "vit-tiny" and result["steps"] == 12
    assert result["torch"] == torch.__version__ and result["device"] == "cpu" and result["num_processes"] == 1
    assert 0 <= result["top1"] <= result["top5"] <= 1 and result["images_per_second"] > 0
    assert 0 < result["seconds"] < 600 and 50e6 < result["peak_memory"] < 50e9
    assert len(result["params_sha256"]) == 64
    config = tmp_path / "run" / "config.json"
    assert read_experiment(config) == experiment
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
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 13))
    assert [line["step"] for line in lines if line["split"] == "test"] == [6, 12]
    assert lines[-1]["top1"] == result["top1"]
    norms = {"grad_norm", "update_norm", "param_norm", "learning_rate"}
    assert norms <= lines[0].keys() and all(lines[0][name] > 0 for name in norms - {"update_norm", "learning_rate"})


@pytest.mark.slow
def test_the_same_again_and_after_a_crash(experiment: Experiment, tmp_path: Path, monkeypatch) -> None:
    """With dropout and augmentation on; test_resume.py has the rest."""
    straight = run(experiment, run_dir=tmp_path / "straight")
    again = run(experiment, run_dir=tmp_path / "again")
    assert again["params_sha256"] == straight["params_sha256"]

    make_batches, steps = backbones.experiment.make_batches, []

    def make_recorded(*args, **kwargs):
        batches = make_batches(*args, **kwargs)
        return lambda step: steps.append(step) or batches(step)

    def make_dying(*args, **kwargs):
        batches = make_batches(*args, **kwargs)

        def dying(step: int):
            if step == 8:
                raise KeyboardInterrupt
            return batches(step)

        return dying

    monkeypatch.setattr(backbones.experiment, "make_batches", make_dying)
    with pytest.raises(KeyboardInterrupt):
        run(experiment, run_dir=tmp_path / "resumed")
    monkeypatch.setattr(backbones.experiment, "make_batches", make_recorded)
    torch.rand(1000)  # another history
    resumed = run(experiment, run_dir=tmp_path / "resumed", resume="latest")
    assert steps == [6, 7, 8, 9, 10, 11]
    assert resumed["params_sha256"] == straight["params_sha256"]
    assert without_times(tmp_path / "resumed") == without_times(tmp_path / "straight")


OPTIONS = [
    {"seed": 1},
    {"clip": 0.01},
    {"optim": use(adam, weight_decay=0.1)},
    {"augment": use(identity)},
    {"label_smoothing": 0.3},
    {"accumulate": 4},
    {"precision": "bfloat16"},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_reaches_the_step(options: dict, experiment: Experiment) -> None:
    def after_three_steps(experiment: Experiment) -> str:
        program = experiment.make()
        state = program.state
        for step in range(3):
            state, _ = program.train_step(state, program.batches(step))
        return tree.sha256(state.params)

    assert after_three_steps(experiment) != after_three_steps(dataclasses.replace(experiment, **options))


@pytest.mark.slow
def test_unknown_model_in_a_real_process(tmp_path: Path) -> None:
    finished = run_process([ROOT / "train.py", "--model", "vit-tinny"], cwd=tmp_path)
    assert finished.returncode == 1 and finished.stdout == ""
    assert finished.stderr.startswith("error: unknown model 'vit-tinny'; did you mean vit-tiny")
    assert finished.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--optim adamm", "unknown optim 'adamm'"),
        ("--optim nowhere:adam", "cannot import nowhere:adam: there is no module 'nowhere'"),
        ("--data mnist", "unknown data 'mnist'; did you mean fashion-mnist"),
        ("cifar10-resnet", "unknown experiment 'cifar10-resnet'"),
        ("--data fashion-mnist", "Fashion-MNIST is neither in"),
        ("cifar10-resnet18", "CIFAR10 is not in"),
        ("--model.patch-size 5", "a patch size of 5 does not divide images of 16x16 pixels"),
        ("--batch-size 65 --accumulate 2", "a batch of 65 cannot be cut into 2 equal parts"),
        ("--resume", "no run to resume in runs/digits-vit-tiny"),
        ("--config absent.json", "cannot read absent.json: No such file or directory"),
        ("--steps 5 --epochs 1", "steps is 5 and epochs is 1.0; give one of them"),
        ("--device cuda", "torch sees no GPU"),
    ],
)
def test_a_users_mistake_is_one_message(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules[fashion_mnist.__module__], "DEBIAN_FOLDER", tmp_path / "debian")
    with pytest.raises(SystemExit) as exit:
        run_command(lambda _: main(arguments.split(), EXPERIMENTS))
    assert str(exit.value).startswith("error: ") and message in str(exit.value)
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_an_operation_that_is_not_deterministic_is_named() -> None:
    """As some are on CUDA; this one is nowhere."""

    def put(args: list[str]) -> None:
        with torch_settings_kept():
            torch.use_deterministic_algorithms(True)
            torch.zeros(3).put_(torch.tensor([1, 1]), torch.ones(2))

    with pytest.raises(SystemExit) as exit:
        run_command(put)
    message = "put_ does not have a deterministic implementation; allow others with --no-deterministic, or use another"
    assert str(exit.value) == f"error: {message} operation"


def test_an_option_out_of_its_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in ("--optim.b1 1", "--schedule.floor -1", "--model.dropout -1", "--augment.padding -1"):
        with pytest.raises(SystemExit) as exit:
            run_command(lambda _, arguments=arguments: main([*arguments.split(), "--steps", "1"], EXPERIMENTS))
        assert exit.value.code == 2 and "it must be" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_that_cannot_share_a_batch(tmp_path: Path) -> None:
    finished = run_ranks(2, ROOT / "train.py", "--batch-size", "33", cwd=tmp_path)
    assert finished.returncode != 0
    assert finished.stderr.count("error: a batch of 33 cannot be cut into 2 equal parts") == 1


IN_THE_STATE = {
    "clip": 1.0,
    "ema": 0.9,
    "freeze": ("head",),
    "train_only": ("head",),
    "layer_decay": 0.5,
    "trunk_lr": 0.5,
}
"""Options that a resumed run cannot change, beside those of the optimizer."""


@pytest.mark.slow
def test_an_existing_run_is_never_overwritten(experiment: Experiment, tmp_path: Path, capsys) -> None:
    experiment = dataclasses.replace(experiment, steps=2)
    run(experiment, run_dir=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="holds a run already; continue it with --resume"):
        run(experiment, run_dir=tmp_path)
    for other, message in (
        ({"model": use(resnet18)}, r"of another model or optimizer:\n  params/head\.weight is float32 \[10, 32\]"),
        (
            {"optim": use(adam, lr=0.1)},
            r"cannot be resumed with other values .*--init-from .*\n  optim\.lr: 0\.001 -> 0\.1",
        ),
        ({"seed": 5}, r"cannot be resumed with other values .*\n  seed: 0 -> 5"),
        ({"batch_size": 16}, r"cannot be resumed with other values .*\n  batch_size: 32 -> 16"),
        *(({name: each}, rf"resumed with other values .*\n  {name}: ") for name, each in IN_THE_STATE.items()),
    ):
        with pytest.raises(InputError, match=message):
            run(dataclasses.replace(experiment, **other), run_dir=tmp_path, resume="latest")
    accumulated = dataclasses.replace(experiment, accumulate=2)
    assert check_run_dir(tmp_path, accumulated, resume="latest") == {"accumulate": "1 -> 2"}
    assert "changed since the checkpoint: model: vit-tiny -> resnet18\n" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_resume_without_checkpoint(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(experiment.to_json()))
    with pytest.raises(InputError, match="there is no checkpoint in"):
        run(experiment, run_dir=tmp_path, resume="latest")
    experiment = dataclasses.replace(experiment, steps=2)
    assert run(experiment, run_dir=tmp_path, resume="auto")["steps"] == 2  # of a run that died before its first
    assert run(experiment, run_dir=tmp_path / "new", resume="auto")["steps"] == 2
    branch = tmp_path / "branch"  # that died before its first, or lost them
    run(experiment, run_dir=branch, resume=tmp_path / "new")
    shutil.rmtree(branch / "checkpoints")
    with pytest.raises(InputError, match="began at a later step than 0, and has no checkpoint"):
        run(experiment, run_dir=branch, resume="auto")


@pytest.mark.slow
def test_a_checkpoint_elsewhere_goes_on_in_a_new_folder(experiment: Experiment, tmp_path: Path, capsys) -> None:
    whole = run(experiment, run_dir=tmp_path / "whole")
    for name, path in (("six", "whole/checkpoints/6"), ("last", "whole")):
        branch = run(experiment, run_dir=tmp_path / name, resume=tmp_path / path)
        assert branch["params_sha256"] == whole["params_sha256"]
    assert "has no lines of steps" not in capsys.readouterr().err
    averaged = dataclasses.replace(experiment, ema=0.9, steps=6)
    run(averaged, run_dir=tmp_path / "averaged")
    run(averaged, run_dir=tmp_path / "copy", resume=tmp_path / "averaged")
    found = [read_checkpoint(tmp_path / name / "checkpoints" / "6").arrays for name in ("averaged", "copy")]
    assert found[0].keys() == found[1].keys() and tree.sha256(saved_weights(found[0])) == tree.sha256(
        saved_weights(found[1])
    )
    lines = [line["step"] for line in without_times(tmp_path / "six")]
    assert lines == [line["step"] for line in without_times(tmp_path / "whole") if line["step"] > 6]
    with pytest.raises(InputError, match="holds a run already"):
        run(experiment, run_dir=tmp_path / "whole", resume=tmp_path / "whole" / "checkpoints" / "6")


@pytest.mark.slow
def test_fine_tuning_starts_from_the_weights_only(experiment: Experiment, tmp_path: Path, monkeypatch, capsys) -> None:
    """From a run, a checkpoint or an exported file; a head of another size is fresh."""
    run(dataclasses.replace(experiment, steps=2), run_dir=tmp_path / "source")
    out = tmp_path / "source.safetensors"
    commands.run("export", str(tmp_path / "source"), "--format", "safetensors", "--out", str(out))
    weights = read_weights(str(tmp_path / "source"))
    sources = [tmp_path / "source", tmp_path / "source" / "checkpoints" / "2", tmp_path / "source.safetensors"]
    digests = []
    for place, source in enumerate(sources):
        tuned = dataclasses.replace(experiment, steps=3, init_from=str(source), seed=5)
        digests.append(run(tuned, run_dir=tmp_path / str(place))["params_sha256"])
        began = read_checkpoint(tmp_path / str(place) / "checkpoints" / "0").arrays
        assert all((began[f"params/{name}"] == leaf.numpy()).all() for name, leaf in weights.items())
        assert began["step"] == 0 and not began["opt_state/1/mu/head.weight"].any()
    assert len(set(digests)) == 1
    shutil.rmtree(tmp_path / "source")  # the run has what it needs
    tuned = dataclasses.replace(experiment, steps=4, init_from=str(sources[0]), seed=5)
    assert run(tuned, run_dir=tmp_path / "0", resume="latest")["steps"] == 4

    tuned = dataclasses.replace(tuned, init_from=str(sources[2]), data=use(two_classes))
    capsys.readouterr()
    run(tuned, run_dir=tmp_path / "two")
    assert "missing or of another size, and initialised: head.weight, head.bias\n" in capsys.readouterr().out
    began = read_checkpoint(tmp_path / "two" / "checkpoints" / "0").arrays
    assert began["params/head.weight"].shape == (2, 32)
    assert (began["params/norm.weight"] == weights["norm.weight"].numpy()).all()
    with pytest.raises(
        InputError, match=r"not weights of this model:\n  cls_token is \(1, 1, 32\), expected \(1, 1, 16\)"
    ):
        model = experiment.model.replace(width=16)
        run(dataclasses.replace(tuned, model=model), run_dir=tmp_path / "other")
    with pytest.raises(InputError, match="there is no nowhere to start from; name a run, one of its"):
        run(dataclasses.replace(tuned, init_from="nowhere"), run_dir=tmp_path / "other")
    library = use(LIBRARIES["torchvision"], architecture="resnet18", pretrained="b.pth")
    with pytest.raises(InputError, match=r"--init-from and --model\.pretrained both name weights to start from"):
        run(dataclasses.replace(tuned, model=library), run_dir=tmp_path / "other")


def two_classes(device: torch.device = CPU) -> Dataset:
    """Digits, odd or even."""
    dataset = digits(device)

    def halve(source):
        return source._replace(info=source.info._replace(class_names=("even", "odd")), labels=source.labels % 2)

    return Dataset(halve(dataset.train), halve(dataset.test))


def test_a_folder_that_cannot_be_made(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write into .*name another --run-dir"):
        run(experiment, run_dir=tmp_path / "file" / "run")


@pytest.mark.slow
def test_nan_stops_the_run_unless_it_is_skipped(experiment: Experiment, tmp_path: Path, monkeypatch) -> None:
    experiment = dataclasses.replace(experiment, optim=use(sgd, lr=1e30), log_every=5)
    with pytest.raises(Diverged, match=r"not finite at step [2-9]\b.*good checkpoint is step 0.*--nonfinite skip"):
        run(experiment, run_dir=tmp_path / "stop")
    result = run(dataclasses.replace(experiment, nonfinite="skip"), run_dir=tmp_path / "skip")
    assert result["steps"] == 12 and json.loads((tmp_path / "skip" / "result.json").read_text())["steps"] == 12
    lines = read_metrics(tmp_path / "skip")
    assert any(line.get("nonfinite") for line in lines)


@pytest.mark.slow
def test_the_last_good_checkpoint_is_named(experiment: Experiment, tmp_path: Path, monkeypatch) -> None:
    make_loss_fn = backbones.experiment.make_loss_fn

    def make_bad_loss_fn(*args, **kwargs):
        loss_fn, calls = make_loss_fn(*args, **kwargs), []

        def bad_loss_fn(params, model_state, batch):
            calls.append(None)
            loss, aux = loss_fn(params, model_state, batch)
            return (loss * torch.nan if len(calls) == 10 else loss), aux

        return bad_loss_fn

    monkeypatch.setattr(backbones.experiment, "make_loss_fn", make_bad_loss_fn)
    with pytest.raises(Diverged, match=r"not finite at step 10; the last good checkpoint is step 6 in .*checkpoints"):
        run(dataclasses.replace(experiment, log_every=7), run_dir=tmp_path)
    monkeypatch.undo()
    assert run(experiment, run_dir=tmp_path, resume="latest")["steps"] == 12


@pytest.mark.slow
def test_the_average_is_what_is_evaluated(experiment: Experiment, tmp_path: Path) -> None:
    """The training itself is the same to the last bit."""
    schedule = use(constant)
    plain = run(dataclasses.replace(experiment, schedule=schedule), run_dir=tmp_path / "plain")
    averaged = run(dataclasses.replace(experiment, schedule=schedule, ema=0.99), run_dir=tmp_path / "averaged")
    assert averaged["params_sha256"] == plain["params_sha256"] and averaged["loss"] != plain["loss"]
    still = run(dataclasses.replace(experiment, schedule=schedule, ema=0.0), run_dir=tmp_path / "still")
    assert still["loss"] == plain["loss"]


def test_experiments_compose_in_python(experiment: Experiment, tmp_path: Path) -> None:
    composed = dataclasses.replace(
        experiment, augment=use(identity), optim=experiment.optim.replace(lr=1e-4), steps=2, seed=3
    )
    assert run(composed, run_dir=tmp_path)["steps"] == 2
    assert os.environ.get("JAX_PLATFORMS") == "cpu"


def test_a_log_in_the_folder_is_no_run(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("> RUN/log.txt")
    assert run(dataclasses.replace(experiment, steps=1), run_dir=tmp_path)["steps"] == 1
    with pytest.raises(InputError, match="holds a run already"):
        run(experiment, run_dir=tmp_path)


def test_torch_is_left_as_it_was(experiment: Experiment, tmp_path: Path) -> None:
    torch.manual_seed(3)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_float32_matmul_precision("high")  # which is TF32 on a GPU
    before = torch.get_rng_state(), torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    try:
        run(dataclasses.replace(experiment, steps=1, model=use(NoTf32)), run_dir=tmp_path)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(torch.get_rng_state(), before[0]) and torch.utils.deterministic.fill_uninitialized_memory
    assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == before[1:]


class NoTf32(torch.nn.Sequential):
    def __init__(self) -> None:
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(768, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
        return super().forward(x)


def tiny_maps(image_shape: tuple[int, int, int], num_classes: int) -> torch.nn.Module:
    """BatchNorm after the maps have shrunk to 1x1."""
    layers = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(3, 10)]
    return torch.nn.Sequential(*layers)


def test_one_value_per_channel(experiment: Experiment) -> None:
    shrinking = dataclasses.replace(experiment, model=use(tiny_maps), batch_size=4, accumulate=4)
    with pytest.raises(InputError, match=r"BatchNorm gets one value per channel.*raise --batch-size"):
        shrinking.make()
    dataclasses.replace(shrinking, accumulate=2).make()
    dataclasses.replace(experiment, batch_size=1).make()  # no BatchNorm


def test_a_finished_run_stays_as_it_is(experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    result = run(experiment, run_dir=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for which in ("auto", "latest"):
        assert run(experiment, run_dir=tmp_path, resume=which) == result
        assert f"the run in {tmp_path} is finished: 12 steps; --steps N continues it\n" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_finished_run_with_other_settings(experiment: Experiment, tmp_path: Path) -> None:
    """What acts in the steps alone would not act; the evaluation may be another."""
    result = run(experiment, run_dir=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"no steps left, .*\n  label_smoothing: 0\.0 -> 0\.1\ngive it more --steps"):
        run(dataclasses.replace(experiment, label_smoothing=0.1), run_dir=tmp_path, resume="latest")
    with pytest.raises(InputError, match=r"no steps left, .*\n  rewind: None -> 5\ngive it more --steps"):
        run(dataclasses.replace(experiment, rewind=5), run_dir=tmp_path, resume="latest")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    other = run(dataclasses.replace(experiment, tta="flip"), run_dir=tmp_path, resume="latest")
    assert other["loss"] != result["loss"] and other["images_per_second"] > 0


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor | None, *, label_smoothing: float) -> Tensor:
    """Of the same name as that of the library."""
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def test_a_component_of_the_same_short_name_is_a_change(experiment: Experiment) -> None:
    changed = list_changes(experiment, dataclasses.replace(experiment, loss=use(cross_entropy)))
    assert changed == {"loss": f"cross-entropy -> {__name__}:cross_entropy"}


def test_two_new_runs_have_two_folders_before_anything_is_in_them(tmp_path: Path) -> None:
    assert [new_run_dir("a", tmp_path).name for _ in range(3)] == ["a", "a-2", "a-3"]


def test_steps_that_are_done_cannot_be_passed_over(experiment: Experiment, tmp_path: Path) -> None:
    half = dataclasses.replace(experiment, steps=6, pass_over=(2,))
    run(half, run_dir=tmp_path)
    for pass_over in ((2, 3), ()):
        with pytest.raises(InputError, match=r"--pass-over differs from that of the checkpoint of step 6 .*: [23];"):
            run(dataclasses.replace(half, steps=12, pass_over=pass_over), run_dir=tmp_path, resume="latest")
    run(dataclasses.replace(half, steps=8, pass_over=(2, 8)), run_dir=tmp_path, resume="latest")


def test_a_resume_that_cannot_write_leaves_all_as_it_was(experiment: Experiment, tmp_path: Path, monkeypatch) -> None:
    run(experiment, run_dir=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr("backbones.run.run.write_config", mock.Mock(side_effect=OSError(28, "No space left")))
    monkeypatch.setattr("backbones.run.run.record_start", mock.Mock(side_effect=OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        run(dataclasses.replace(experiment, steps=20), run_dir=tmp_path, resume=6)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_fewer_steps_than_were_done(experiment: Experiment, tmp_path: Path) -> None:
    run(experiment, run_dir=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    shorter = dataclasses.replace(experiment, steps=6)
    with pytest.raises(InputError, match="is of step 12, and the run has 6 steps; give more --steps, or go back with"):
        run(shorter, run_dir=tmp_path, resume="latest")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    run(shorter, run_dir=tmp_path, resume=6)
    config, result = (json.loads((tmp_path / name).read_text()) for name in ("config.json", "result.json"))
    assert config["steps"] == result["steps"] == 6 == max(line["step"] for line in read_metrics(tmp_path))


def test_a_longer_run_has_no_result_until_it_ends(experiment: Experiment, tmp_path: Path, monkeypatch) -> None:
    run(experiment, run_dir=tmp_path)
    monkeypatch.setattr("backbones.run.run.train_and_rewind", lambda *args, **options: 1 / 0)  # it dies at once
    with pytest.raises(ZeroDivisionError):
        run(dataclasses.replace(experiment, steps=20), run_dir=tmp_path, resume="latest")
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 20
    assert not (tmp_path / "result.json").exists()


def test_each_new_run_takes_a_folder_of_its_own(experiment: Experiment, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = dataclasses.replace(experiment, steps=1)
    run(experiment)
    run(dataclasses.replace(experiment, optim=use(sgd)))
    run(dataclasses.replace(experiment, optim=use(sgd), steps=2), resume="auto")  # the newest of that name
    names = ["digits-vit-tiny", "digits-vit-tiny-2"]
    assert sorted(path.name for path in Path("runs").iterdir()) == names
    steps = [json.loads((Path("runs") / name / "result.json").read_text())["steps"] for name in names]
    assert steps == [1, 2]
    shutil.rmtree("runs/digits-vit-tiny")
    run(experiment)  # the newest has the highest number
    assert sorted(path.name for path in Path("runs").iterdir()) == ["digits-vit-tiny-2", "digits-vit-tiny-3"]
    run(dataclasses.replace(experiment, name="digits-vit-tiny-3"), resume="auto")  # not that of the other experiment
    assert read_json(Path("runs/digits-vit-tiny-3-2/config.json"))["name"] == "digits-vit-tiny-3"


def test_epochs_are_steps(experiment: Experiment, tmp_path: Path) -> None:
    experiment = dataclasses.replace(experiment, steps=None, epochs=0.1)
    assert run(experiment, run_dir=tmp_path)["steps"] == 5  # 0.1 * 1433 / 32, rounded up


def test_weights_that_are_only_named_are_not_left_out_without_a_word(experiment: Experiment, capsys) -> None:
    for options in ({"architecture": "resnet18"}, {"architecture": "resnet18.a1_in1k", "pretrained": "a.pth"}):
        warn_of_weights(dataclasses.replace(experiment, model=use(LIBRARIES["timm"], **options)))
    assert not capsys.readouterr().err
    warn_of_weights(dataclasses.replace(experiment, model=use(LIBRARIES["timm"], architecture="resnet18.a1_in1k")))
    assert "the model is resnet18 without the weights a1_in1k; --model.pretrained FILE" in capsys.readouterr().err


def test_a_run_of_version_0_1_gets_one_line(experiment: Experiment, tmp_path: Path) -> None:
    old = {"name": "digits-vit-tiny", "data": {"name": "digits", "flip": False}, "model": {"name": "vit-tiny"}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(SystemExit) as exit:
        run_command(lambda _: main(["--resume", "--run-dir", str(tmp_path)], EXPERIMENTS))
    message = str(exit.value)
    assert message.startswith(
        f"error: cannot read the experiment of {tmp_path}/config.json: it was written by version 0.1, and"
    )
    assert "start a new run" in message and "\n" not in message


@pytest.mark.slow
def test_a_run_up_to_a_step_goes_on_as_if_it_had_not_stopped(experiment: Experiment, tmp_path: Path) -> None:
    straight = run(experiment, run_dir=tmp_path / "straight")
    part = run(experiment, run_dir=tmp_path / "run", until=5)
    assert part["steps"] == newest(tmp_path / "run") == 5
    assert not (tmp_path / "run" / "result.json").exists() and 0 < part["top1"] < 1
    again = run(experiment, run_dir=str(tmp_path / "run"), resume="5", until=5)
    assert again["top1"] == part["top1"] and again["params_sha256"] == part["params_sha256"]
    assert (
        run(experiment, run_dir=tmp_path / "run", resume="auto", until=99)["params_sha256"] == straight["params_sha256"]
    )
    assert (tmp_path / "run" / "result.json").exists()
    lines = [line for line in without_times(tmp_path / "run") if (line["step"], line["split"]) != (5, "test")]
    assert lines == without_times(tmp_path / "straight")


@pytest.mark.slow
def test_a_run_up_to_a_step_that_is_asked_to_stop_at_its_end_says_so(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a loop over parts of a run would begin the next one."""
    wait = Checkpoints.wait
    asked: list[int] = []

    def stopped_while_waiting(checkpoints: Checkpoints) -> None:
        wait(checkpoints)
        asked.extend(step for step in list_steps(checkpoints.folder) if step == 5)

    monkeypatch.setattr(Checkpoints, "wait", stopped_while_waiting)
    with pytest.raises(Preempted, match=r"stopped after step 5 of \d+, saved in .*resume with --run-dir"):
        run(experiment, run_dir=tmp_path / "run", until=5, preempted=lambda: bool(asked))


@pytest.mark.slow
def test_memory_of_which_an_earlier_run_needed_more_is_not_known(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "peak_memory", lambda device: 10**9)
    assert run(dataclasses.replace(experiment, steps=1), run_dir=tmp_path)["peak_memory"] is None


@pytest.mark.slow
def test_a_finished_run_does_nothing_about_options_that_change_no_result(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = dataclasses.replace(experiment, steps=2)
    run(experiment, run_dir=tmp_path)
    before = (tmp_path / "result.json").stat().st_mtime_ns
    run(dataclasses.replace(experiment, keep=5, log_every=3, threads=1), run_dir=tmp_path, resume="latest")
    assert "is finished: 2 steps" in capsys.readouterr().out
    assert (tmp_path / "result.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="these changes would have no effect"):
        run(dataclasses.replace(experiment, label_smoothing=0.3), run_dir=tmp_path, resume="latest")


@pytest.mark.slow
def test_a_start_that_is_refused_leaves_no_folder(experiment: Experiment, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="profile"):
        run(experiment, run_dir=tmp_path / "run", profile=range(100, 110))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_resumed_run_needs_no_file_of_pretrained_weights(experiment: Experiment, tmp_path: Path) -> None:
    """Nor does an audit; and another file would have no effect."""
    module = torchvision.models.squeezenet1_1(num_classes=10)
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    pretrained = use(LIBRARIES["torchvision"], architecture="squeezenet1_1", pretrained=str(tmp_path / "weights.pth"))
    options = {"data": use(digits, size=32), "model": pretrained, "accumulate": 1, "steps": 2, "save_every": 1}
    experiment = dataclasses.replace(experiment, **options)
    run(experiment, run_dir=tmp_path / "run")
    (tmp_path / "weights.pth").unlink()
    run(dataclasses.replace(experiment, steps=3), run_dir=tmp_path / "run", resume="latest")
    assert audit(tmp_path / "run", "2:3")
    other = dataclasses.replace(experiment, model=pretrained.replace(pretrained="other.pth"), steps=4)
    with pytest.raises(InputError, match=r"model\.pretrained: .*weights\.pth -> other\.pth"):
        run(other, run_dir=tmp_path / "run", resume="latest")


def with_a_width(num_classes: int, image_shape: tuple, *, pretrained: Literal["none", "imagenet"] = "none"):
    """Its option `pretrained` is no file of weights, as that of `--model timm` is."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(image_shape), num_classes))


@pytest.mark.slow
def test_an_option_of_ones_own_called_pretrained(experiment: Experiment, tmp_path: Path) -> None:
    experiment = dataclasses.replace(experiment, model=use(with_a_width, pretrained="imagenet"), steps=1)
    for steps in (1, 2):
        run(dataclasses.replace(experiment, steps=steps), run_dir=tmp_path, resume="auto")
