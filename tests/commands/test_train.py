import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from backbones.commands.options import check_given_once
from backbones.commands.train import Command, annotations_of, main, parse as parse_with
from backbones.component import use
from backbones.data import DataInfo, fashion_mnist, image_folder
from backbones.errors import InputError
from backbones.models.vit import vit_small, vit_tiny
from backbones.optim import adamw, lion, muon
from backbones.optim.schedule import multi_step
from backbones.run.checkpoint.folder import Manifest, write_checkpoint
from experiments import EXPERIMENTS

DEFAULT = EXPERIMENTS["digits-vit-tiny"]


def parse(args: list[str]) -> Command:
    return parse_with(args, EXPERIMENTS)


def test_no_arguments_are_the_embedded_default() -> None:
    assert parse([]) == Command(experiment=DEFAULT)


def test_naming_what_is_chosen_already_changes_nothing() -> None:
    assert parse(["--model", "vit-tiny", "--optim", "adam"]).experiment == DEFAULT


def test_experiment_by_name_with_overrides_in_any_order() -> None:
    base = EXPERIMENTS["cifar10-resnet18"]
    experiment = parse(["cifar10-resnet18", "--optim.lr", "0.05", "--steps=7", "--seed", "3"]).experiment
    assert experiment == dataclasses.replace(base, optim=base.optim.replace(lr=0.05), steps=7, seed=3)


def test_components_by_name_with_their_own_fields() -> None:
    arguments = (
        "--optim.weight-decay 0.1 --model vit-small --model.depth 6 --optim=adamw --data fashion-mnist "
        "--augment.no-flip --schedule multi-step --schedule.milestones 0.4 0.8 --clip 1 --run-dir there --resume"
    )
    command = parse(arguments.split())
    assert command.run_dir == Path("there") and command.resume == "latest"
    assert command.experiment == dataclasses.replace(
        DEFAULT,
        name="fashion-mnist-vit-small-adamw",  # it is not the experiment of that name any more
        data=use(fashion_mnist),
        augment=DEFAULT.augment.replace(flip=False),
        model=use(vit_small, depth=6),
        optim=use(adamw, weight_decay=0.1),
        schedule=use(multi_step, milestones=(0.4, 0.8)),
        clip=1.0,
    )


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ("cifar10-resnet18-plus --data fashion-mnist", "fashion-mnist-resnet18-plus"),
        ("cifar10-resnet18-plus --model vit-tiny --data digits", "digits-vit-tiny-plus"),
        ("cifar10-resnet18-plus --optim lion --seed 1", "cifar10-resnet18-plus-lion"),
        ("speedrun --data fashion-mnist", "speedrun-fashion-mnist"),
        ("speedrun --model resnet18 --optim lion", "speedrun-resnet18-lion"),
    ],
)
def test_the_name_says_the_recipe_and_what_was_chosen(args: str, name: str) -> None:
    assert parse(args.split()).experiment.name == name


def test_what_every_optimizer_can_have_around_it() -> None:
    experiment = parse(["--optim", "muon", "--ema", "0.999", "--clip", "1.0", "--weight-decay-mask", "all"]).experiment
    assert experiment == dataclasses.replace(
        DEFAULT, name="digits-vit-tiny-muon", optim=use(muon), weight_decay_mask="all", ema=0.999, clip=1.0
    )


def test_steps_or_epochs() -> None:
    experiment = parse(["--epochs", "2.5"]).experiment
    assert experiment.epochs == 2.5 and experiment.steps is None
    assert parse(["--steps", "7"]).experiment.steps == 7


def test_functions_by_their_import_path() -> None:
    assert parse(["--optim", "backbones.optim.alias:lion"]).experiment.optim == use(lion)
    assert parse(["experiments.digits:digits_resnet18"]).experiment == EXPERIMENTS["digits-resnet18"]
    with pytest.raises(InputError, match=r"experiments\.digits:digits is a function; wanted an Experiment"):
        parse(["experiments.digits:digits"])


def test_a_new_run_from_a_config(tmp_path: Path) -> None:
    experiment = dataclasses.replace(EXPERIMENTS["digits-resnet18"], steps=11, seed=4)
    (tmp_path / "config.json").write_text(json.dumps(experiment.to_json()))
    command = parse(["--config", str(tmp_path / "config.json"), "--seed", "5"])
    assert command.experiment == dataclasses.replace(experiment, seed=5) and command.resume is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vit-tinny"], "unknown model 'vit-tinny'; did you mean vit-tiny"),
        (["--optim=adamm"], "unknown optim 'adamm'; did you mean adam"),
        (["--data", "fashion_mnist"], "unknown data 'fashion_mnist'; did you mean fashion-mnist"),
        (["--schedule", "cosin"], "unknown schedule 'cosin'; did you mean cosine"),
        (["cifar10-resnet"], "unknown experiment 'cifar10-resnet'; did you mean cifar10-resnet18"),
        (["zzz"], "unknown experiment 'zzz'; There are: digits-vit-tiny"),
        (["--augment", "crop"], "unknown augment 'crop'; did you mean crop-flip"),
        (["--model"], "unknown model ''"),
    ],
)
def test_unknown_names_offer_the_nearest(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(arguments)


def test_help_shows_the_fields_of_what_is_chosen_with_their_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        parse(["cifar10-resnet18", "--optim", "adam", "--optim.lr", "0.25", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert exit.value.code == 0
    assert "--model.stem {cifar,imagenet}" in shown and "--model.depth" not in shown
    assert "--optim.b2" in shown and "Number of training steps; 1 or more (default: 64000)" in shown
    assert "at least 0 and below 1 (default: 0.999)" in shown and "--optim.lr FLOAT" in shown
    assert "--optim NAME: sgd, [adam], adamw" in shown and "[cifar10-resnet18-adam]" in shown
    assert "--model NAME: [resnet18]" in shown and "convnext: convnext-atto, convnext-tiny" in shown


def test_unknown_fields_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        parse(["--model.dept", "6"])
    assert exit.value.code == 2 and "--model.depth" in capsys.readouterr().err


def test_resume_finds_the_folder_that_the_same_command_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    begun = parse(["cifar10-resnet18", "--model", "resnet34", "--steps", "11", "--seed", "3"]).experiment
    for name, steps in (("cifar10-resnet34", 10), ("cifar10-resnet34-2", 11), ("cifar10-resnet34-adam", 12)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(dataclasses.replace(begun, steps=steps).to_json()))
    assert parse(["cifar10-resnet18", "--model", "resnet34", "--resume"]).experiment == begun
    for name in ("smooth", "cifar10-resnet34-7"):  # of which the latter looks like one more of the others
        named = dataclasses.replace(begun, name=name, label_smoothing=0.1)
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "config.json").write_text(json.dumps(named.to_json()))
        assert parse(["cifar10-resnet18", "--name", name, "--resume"]).experiment == named
    assert parse(["cifar10-resnet18", "--model", "resnet34", "--resume"]).experiment == begun


def test_resume_takes_the_configuration_of_the_run(tmp_path: Path) -> None:
    experiment = dataclasses.replace(EXPERIMENTS["digits-resnet18"], steps=11)
    (tmp_path / "config.json").write_text(json.dumps(experiment.to_json()))
    assert parse(["--resume", "--run-dir", str(tmp_path)]).experiment == experiment
    longer = parse(["--run-dir", str(tmp_path), "--resume", "--steps", "22"]).experiment
    assert longer == dataclasses.replace(experiment, steps=22)
    assert parse(["digits-vit-tiny", "--resume", f"--run-dir={tmp_path}"]).experiment == experiment
    other_model = parse(["--model", "vit-tiny", "--resume", "--run-dir", str(tmp_path)]).experiment
    assert other_model.model == use(vit_tiny) and other_model.steps == 11
    (tmp_path / "config.json").write_text('{"name": "x"')
    with pytest.raises(InputError, match=r"config.json is damaged"):
        parse(["--resume", "--run-dir", str(tmp_path)])


def test_what_a_resumed_run_keeps_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file that defines an experiment may have changed since."""
    begun = EXPERIMENTS["digits-resnet18"]
    changed = dataclasses.replace(begun, label_smoothing=0.1, optim=begun.optim.replace(lr=0.5))
    (tmp_path / "config.json").write_text(json.dumps(begun.to_json()))
    args = ["digits-resnet18", "--resume", "--run-dir", str(tmp_path)]
    assert parse_with(args, {begun.name: changed}).experiment == begun
    kept = f"optim.lr {begun.optim.values['lr']}, not 0.5; label_smoothing 0.0, not 0.1"
    said = f"the run keeps its own settings where digits-resnet18 has others: {kept}\n"
    assert capsys.readouterr().out == said
    (tmp_path / "other.json").write_text(json.dumps(changed.to_json()))
    by_config = ["--config", str(tmp_path / "other.json"), *args[1:]]
    assert parse(by_config).experiment == begun and capsys.readouterr().out == said
    parse_with([*args, "--optim.lr", "0.5", "--label-smoothing=0.1"], {begun.name: changed})
    parse_with([*args[1:], "--no-deterministic"], {begun.name: changed})
    short = dataclasses.replace(begun, steps=None, epochs=1.0, deterministic=False)
    (tmp_path / "config.json").write_text(json.dumps(short.to_json()))
    parse_with([*args, "--epochs", "1", "--no-deterministic"], {begun.name: begun})
    renamed = dataclasses.replace(begun, name="mine", pass_over=(3,), data=use(image_folder, root="photos"))
    (tmp_path / "config.json").write_text(json.dumps(renamed.to_json()))
    parse_with([*args, "--data", "image-folder", "--data.root", "photos"], {begun.name: begun})
    parse_with([*args, "--data", "image-tar", "--data.root", "photos.tar"], {begun.name: begun})
    assert capsys.readouterr().out == ""


def test_an_experiment_of_ones_own_need_not_be_named_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = dataclasses.replace(EXPERIMENTS["digits-resnet18"], steps=11)
    (tmp_path / "config.json").write_text(json.dumps(experiment.to_json()))
    assert parse_with(["--resume", "--run-dir", str(tmp_path)], {}).experiment == experiment
    with pytest.raises(InputError, match="name an experiment, as digits-vit-tiny or module:name"):
        parse_with(["--resume", "--run-dir", str(tmp_path / "nowhere")], {})
    with pytest.raises(InputError, match=r"--config .*config\.json brings its experiment; leave out digits-resnet18"):
        parse(["digits-resnet18", "--config", str(tmp_path / "config.json")])
    with pytest.raises(SystemExit) as exit:
        parse_with(["--help"], {}, prog="backbones train")
    assert exit.value.code == 0 and capsys.readouterr().out.startswith("usage: backbones train EXPERIMENT [OPTIONS]")


def test_short_names_are_those_of_the_package_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    """`backbones train` and `backbones sweep` know them from nowhere else."""
    assert parse_with(["digits-resnet18"], {}).experiment == EXPERIMENTS["digits-resnet18"]
    with pytest.raises(InputError, match="unknown experiment 'digits-resnet19'; did you mean digits-resnet18"):
        parse_with(["digits-resnet19"], {})
    monkeypatch.setitem(sys.modules, "experiments", ModuleType("experiments"))
    with pytest.raises(InputError, match="name the experiment as module:name, not digits-resnet18;"):
        parse_with(["digits-resnet18"], {})


def test_resume_from_a_checkpoint_elsewhere_takes_its_configuration(tmp_path: Path) -> None:
    experiment = dataclasses.replace(EXPERIMENTS["digits-resnet18"], steps=11)
    arrays = {"step": np.array(3)}
    info = DataInfo((3, 16, 16), ("a", "b"), (0.0,) * 3, (1.0,) * 3)
    write_checkpoint(tmp_path / "3", arrays, Manifest(3, {}, experiment.to_json(), info, since_log={}))
    command = parse(["--resume", str(tmp_path / "3"), "--run-dir", "new"])
    assert command == Command(experiment=experiment, run_dir=Path("new"), resume=str(tmp_path / "3"))
    with pytest.raises(InputError, match="there is no checkpoint in nowhere"):
        parse(["--resume", "nowhere"])


def test_what_a_run_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(
        "backbones.commands.train.run", lambda experiment, **options: called.append((experiment, options))
    )
    options = ["--run-dir", "a", "--resume", "3", "--profile", "5:8", "--log-to", "mlflow", "b:c"]
    main(["--steps", "7", *options], EXPERIMENTS)
    given = {"run_dir": Path("a"), "resume": 3, "profile": range(5, 8), "log_to": ("mlflow", "b:c")}
    assert called == [(dataclasses.replace(DEFAULT, steps=7), given)]


def test_a_name_that_is_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it must be the name of a folder"):
        main(["--name", str(tmp_path), "--resume"], EXPERIMENTS)


def test_resume_alone_is_the_latest() -> None:
    for args in (["--resume"], ["--resume", "--steps", "5"], ["--steps", "5", "--resume", "latest"]):
        assert parse(args).resume == "latest"
    assert parse(["--resume", "auto"]).resume == "auto" and parse(["--resume=300"]).resume == "300"


@pytest.mark.parametrize(
    "args",
    [
        "--freeze stem --freeze=head",
        "--train-only head --train_only stem",
        "--log-to a --log-to b",
        "--schedule multi-step --schedule.milestones 0.5 --schedule.milestones 0.75",
    ],
)
def test_options_of_several_values_are_given_once(args: str) -> None:
    with pytest.raises(InputError, match="is given twice; give all its values after one"):
        main(args.split(), EXPERIMENTS)


def test_the_last_of_other_options_counts() -> None:
    args = "--augment resized-crop --augment.scale 0.5 1 --augment.scale 0.2 1 --steps 5 --steps 6"
    experiment = parse(args.split()).experiment
    check_given_once(args.split(), annotations_of(experiment))
    assert experiment.augment.values["scale"] == (0.2, 1.0) and experiment.steps == 6
