import dataclasses
import itertools
from pathlib import Path

import pytest
from helpers.runs import SMALL

import backbones.augment
import backbones.commands.sweep
import backbones.data
import backbones.optim
from backbones.commands.sweep import main
from backbones.component import use
from backbones.errors import InputError
from backbones.models.airbench import airbench
from backbones.models.vit import vit_tiny
from backbones.optim import adam, sgd
from backbones.run.sweep.members import SWEEP, Plan, Sweep, write_sweep
from experiments.digits import digits_vit_tiny

NAME = "digits-vit-tiny"


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The sweeps that were to be run."""
    found: list[dict] = []

    def run_sweep(sweep: Sweep, folder: Path, **options: object) -> dict[str, str]:
        found.append({"sweep": sweep, "folder": folder, **options})
        return {}

    monkeypatch.setattr(backbones.commands.sweep, "run_sweep", run_sweep)
    monkeypatch.chdir(tmp_path)
    return found


def test_members_are_what_train_would_run(calls: list[dict]) -> None:
    args = f"{NAME} --optim.b1 0.8 --over optim.lr 1e-4 3e-4 --over seed 0 1 --steps 7 --clip 1"
    assert main(f"{args} --how processes --workers 3".split()) is True
    (call,) = calls
    base = dataclasses.replace(digits_vit_tiny, optim=use(adam, lr=1e-3, b1=0.8), steps=7, clip=1.0)
    assert call["sweep"].experiment == base and call["sweep"].axes == {"optim.lr": ["1e-4", "3e-4"], "seed": ["0", "1"]}
    assert [(member.values, member.experiment) for member in call["sweep"].members] == [
        ({"optim.lr": lr, "seed": seed}, dataclasses.replace(base, optim=base.optim.replace(lr=lr), seed=seed))
        for lr, seed in itertools.product((1e-4, 3e-4), (0, 1))
    ]
    assert [member.name for member in call["sweep"].members][1] == "1-lr-1e-4-seed-1"
    assert (call["folder"], call["how"], call["workers"]) == (Path("sweeps/digits-vit-tiny"), "processes", 3)


def test_values_of_every_kind(calls: list[dict]) -> None:
    over = ["--over", "schedule.milestones", "0.4 0.8", "0.9", "--over", "augment.flip", "True", "false"]
    main([NAME, "--schedule", "multi-step", "--schedule.warmup-steps=0", *over, "--over", "clip", "None", "1"])
    members = calls[0]["sweep"].members
    assert [each.values for each in members] == [
        {"schedule.milestones": milestones, "augment.flip": flip, "clip": clip}
        for milestones, flip, clip in itertools.product(([0.4, 0.8], [0.9]), (True, False), (None, 1.0))
    ]
    for each in members:
        assert [*each.experiment.schedule.values["milestones"]] == each.values["schedule.milestones"]
        assert each.experiment.augment.values["flip"] is each.values["augment.flip"]
    assert members[0].name == "0-milestones-0.4_0.8-flip-True-clip-None"


def test_components_and_their_options(calls: list[dict]) -> None:
    main(f"{NAME} --over model vit-tiny airbench --over optim sgd --optim.lr 0.02 --steps 5".split())
    first, second = (member.experiment for member in calls[0]["sweep"].members)
    assert first.model == use(vit_tiny, patch_size=8, dropout=0.1) and second.model == use(airbench)
    assert first.optim == second.optim == use(sgd, lr=0.02)
    assert calls[0]["sweep"].members[1].values == {"model": "airbench", "optim": "sgd"}


def test_random_draws_have_the_type_of_their_option(calls: list[dict]) -> None:
    main(f"{NAME} --over optim.lr 0..1 --over batch_size 16..64:log --random 5 --sweep-seed 3 --halving 2".split())
    sweep = calls[0]["sweep"]
    assert len(sweep.members) == 5 and sweep.halving == 2
    for member in sweep.members:
        assert 0 < member.values["optim.lr"] < 1 and member.experiment.optim.values["lr"] == member.values["optim.lr"]
        assert 16 <= member.values["batch_size"] <= 64 and isinstance(member.experiment.batch_size, int)
    for seed in ("3", "4"):
        main(f"{NAME} --over optim.lr 0..1 --over batch_size 16..64:log --random 5 --sweep-seed {seed}".split())
    again, other = (call["sweep"] for call in calls[1:])
    assert [each.values for each in again.members] == [each.values for each in sweep.members]
    assert [each.values for each in other.members] != [each.values for each in sweep.members]


def test_a_range_of_an_option_that_the_first_component_has_not(calls: list[dict]) -> None:
    main(f"{NAME} --over optim sgd sam-sgd --over optim.momentum 0.8..0.99 --random 4".split())
    members = calls[0]["sweep"].members
    assert len(members) == 4 and all(0.8 <= each.experiment.optim.values["momentum"] <= 0.99 for each in members)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--over optim.lrr 1 2", "unknown field for --over 'optim.lrr'; did you mean optim.lr"),
        ("--over name a b", "unknown field for --over 'name'"),
        ("--over optim.lr", "--over optim.lr has no values"),
        ("", "give --over FIELD VALUE"),
        ("--over seed 0 1 --over seed 2", "--over seed is given twice"),
        ("--over seed 0 00", "would be the same run as 0-seed-0"),
        ("--over model vit-tiny vit-tinny", "unknown model 'vit-tinny'; did you mean vit-tiny"),
        ("--over batch_size 64 63 --accumulate 2", "1-batch_size-63 cannot be run: a batch of 63 cannot be cut"),
        ("--over optim.lr 1e-3..1e-2", "is a range, from which --random N draws"),
        ("--over optim.lr 1e-3..inf --random 3", "the low end must be below the high end, and both be finite"),
        ("--seed 5 --over seed 0 1", "--seed is varied by --over, so its other value has no effect"),
        ("--over augment.flip true false --augment.no-flip", "--augment.flip is varied by --over"),
    ],
)
def test_mistakes(calls: list[dict], args: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        main([NAME, *args.split()])
    assert not calls and not Path("sweeps").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--over optim.b1 0.9 1.5", "b1 is 1.5; it must be at least 0 and below 1"),
        ("--over optim.lr 1e-3 fast", "--optim.lr"),
        ("--over optim.lr -1..1 --random 3", "lr is -1.0; it must be 0 or more"),
        ("--over seed 0 --run-dir runs/x", "--run-dir"),
        ("--over seed 0 --how fast", "--how"),
        ("--over seed 0 --halving 1", "--halving is 1; it must be 2 or more"),
        ("--over seed 0 1 --until 5", "--until is for one member, named by --only"),
        ("--over seed 0 1 --sweep-seed 5", "--sweep-seed is for the draws of --random N"),
        ("--over seed 0 1 --how vmap --workers 3", "--workers is for --how processes, not vmap"),
        ("--over seed 0 1 --halving 2 --how vmap", "--how vmap with --halving: fewer members"),
        ("--over optim.lr 0..1 --random 2 --sweep-seed 9223372036854775808", "--sweep-seed is 9223372036854775808"),
        ("--over seed 0 1 --only 1 --how vmap", "--how and --workers are for all members, and --only names one"),
    ],
)
def test_values_are_checked_as_on_the_command_line_of_train(
    calls: list[dict], capsys: pytest.CaptureFixture[str], args: str, message: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        main([NAME, *args.split()])
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert exit.value.code == 2 and message in shown and not calls


def test_a_sweep_is_continued_by_its_folder_alone(calls: list[dict], capsys: pytest.CaptureFixture[str]) -> None:
    main(f"{NAME} --over seed 0 1 --sweep-dir here".split())
    sweep = calls.pop()["sweep"]
    Path("here").mkdir()
    write_sweep(Path("here"), sweep, Plan())
    main(["--resume", "here", "--how", "processes"])
    main(["--resume=here"])
    assert [(call["sweep"], call["folder"], call["how"]) for call in calls] == [
        (sweep, Path("here"), "processes"),
        (sweep, Path("here"), "auto"),
    ]
    for option in ("--steps", "--sweep-seed", "--config"):
        with pytest.raises(InputError, match="--resume continues a sweep as it is"):
            main(["--resume", "here", option, "5"])
    with pytest.raises(InputError, match=r"cannot read nowhere/sweep\.json"):
        main(["--resume", "nowhere"])
    with pytest.raises(InputError, match="unknown member '2'"):
        main(["--resume", "here", "--only", "2"])
    (Path("here") / SWEEP).write_text('{"members": []}')
    with pytest.raises(InputError, match="is not a sweep of this program"):
        main(["--resume", "here"])


@pytest.mark.slow
def test_members_are_run_one_by_one_as_the_jobs_of_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args = f"{NAME} {SMALL} --steps 2 --schedule.warmup-steps 0 --over seed 0 1 --sweep-dir here".split()
    main([*args, "--only", "1"])
    main(["--resume", "here", "--only", "0-seed-0"])
    assert sorted(path.parent.name for path in Path("here").glob("*/result.json")) == ["0-seed-0", "1-seed-1"]
    capsys.readouterr()
    assert main([*args, "--how", "sequence"]) is True
    assert "2 members up to step 2; 2 are done" in capsys.readouterr().out
    assert len((Path("here") / "table.csv").read_text().splitlines()) == 3
    with pytest.raises(InputError, match="--only: name the folder of the sweep by --sweep-dir"):
        main([*args[:-2], "--only", "1"])
    with pytest.raises(InputError, match="which members of a sweep with --halving go on is decided by all"):
        main([*args[:-1], "there", "--halving", "2", "--only", "1"])


def test_help_shows_the_options_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([NAME, "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert exit.value.code == 0
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.startswith("usage: backbones sweep EXPERIMENT [OPTIONS]")
    for text in ("--over FIELD VALUE...", "--how {auto,sequence,processes,vmap}", "--halving", "--optim.b2", "--steps"):
        assert text in shown


def crop_flip(*, padding: int = 1):
    """It has the same name as the augmentation of the library."""
    return backbones.augment.crop_flip(padding=padding)


def test_components_of_one_name_are_told_apart(calls: list[dict]) -> None:
    main([NAME, "--over", "augment", "crop-flip", f"{__name__}:crop_flip", "--over", "seed", "0", "1"])
    assert [member.values["augment"] for member in calls[0]["sweep"].members] == [
        *("crop-flip", "crop-flip", f"{__name__}:crop_flip", f"{__name__}:crop_flip")
    ]


def test_an_option_without_a_default_may_be_varied(calls: list[dict]) -> None:
    command = f"{NAME} --model torchvision --data.size 32 --over model.architecture resnet18 squeezenet1_1"
    main(command.split())
    names = [member.experiment.model.values["architecture"] for member in calls[0]["sweep"].members]
    assert names == ["resnet18", "squeezenet1_1"]
    main([*f"{NAME} --data {__name__}:rooted --over data.my-root ../a ../b".split(), "--model.patch-size", "8"])
    assert [member.values["data.my_root"] for member in calls[1]["sweep"].members] == ["../a", "../b"]


def rooted(device, *, my_root: str):
    return backbones.data.digits(device)


def rate_and_decay(*, rate: float, decay: float):
    return backbones.optim.chain(backbones.optim.trace(decay), backbones.optim.scale(-rate))


def test_two_ranges_of_options_without_defaults(calls: list[dict]) -> None:
    command = f"{NAME} --optim {__name__}:rate_and_decay --schedule constant --over optim.rate 0.1..0.2"
    main([*command.split(), "--over", "optim.decay", "0.5..0.9", "--random", "3"])
    for member in calls[0]["sweep"].members:
        assert 0.1 <= member.values["optim.rate"] <= 0.2 and 0.5 <= member.values["optim.decay"] <= 0.9


def test_texts_with_spaces(calls: list[dict]) -> None:
    """They are several values of an option that has several, and else one."""
    main([NAME, "--data", f"{__name__}:rooted", "--over", "data.my-root", "my photos/a", "b"])
    assert [each.experiment.data.values["my_root"] for each in calls[0]["sweep"].members] == ["my photos/a", "b"]
    main([NAME, "--over", "freeze", "stem head", "head"])
    assert [each.experiment.freeze for each in calls[1]["sweep"].members] == [("stem", "head"), ("head",)]


def test_options_of_several_values_are_given_once(calls: list[dict]) -> None:
    with pytest.raises(InputError, match="--freeze is given twice"):
        main(f"{NAME} --over seed 0 1 --freeze stem --freeze head".split())
