import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbones import commands
from backbones.augment import repeated, trivial_augment
from backbones.commands.augment_preview import main, read_experiment_of
from backbones.component import use
from backbones.data import digits
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.run.analysis.augment_sheet import make_sheet
from backbones.run.analysis.pictures import draw_tiles, save_tiles
from experiments.digits import digits_vit_tiny

NAME = "experiments.digits:digits_vit_tiny"


@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
def test_a_sheet_is_what_the_run_trains_on(
    sampling: str, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its own step, to the last bit; the variants after it are others."""
    experiment = dataclasses.replace(experiment, sampling=sampling)
    seen = []
    monkeypatch.setattr(
        "backbones.experiment.make_normalize",
        lambda *_: lambda images: (seen.append(images.clone()), images.to(torch.float32) / 255)[1],
    )
    program = experiment.make()
    state, _ = program.train_step(program.state, program.batches(0))
    program.train_step(state, program.batches(1))
    sheet = make_sheet(experiment, digits(), experiment.augment, samples=5, variants=3, step=1)
    assert sheet.variants.shape == (5, 3, 3, 16, 16)
    batch = program.batches(1)
    assert torch.equal(sheet.original, batch.images[:5]) and torch.equal(sheet.labels, batch.labels[:5])
    assert torch.equal(sheet.variants[:, 0], seen[1][:5])
    assert not torch.equal(sheet.variants[:, 0], sheet.variants[:, 1])


def test_the_pixels_are_drawn_as_they_are(tmp_path: Path) -> None:
    sheet = make_sheet(digits_vit_tiny, digits(), use(trivial_augment), samples=3, variants=4, step=0)
    draw_tiles(sheet.rows, tmp_path / "out.png", title="title", first_apart=True)
    with Image.open(tmp_path / "out.png") as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    tiles = torch.cat([sheet.original[:, None], sheet.variants], dim=1)
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            top, left = 26 + (96 + 13 + 6) * i, 6 + 102 * j + (12 if j else 0)
            drawn = pixels[top : top + 96, left : left + 96].permute(2, 0, 1)
            assert torch.equal(drawn[:, 3::6, 3::6], tile)
    assert pixels.shape[:2] == (26 + 3 * 115, 6 + 12 + 5 * 102)


def test_targets_of_the_sheet() -> None:
    sheet = make_sheet(digits_vit_tiny, digits(), use(repeated), samples=4, variants=2, step=0)
    assert sheet.targets.argmax(dim=2).tolist() == [[label] * 2 for label in sheet.labels[[0, 0, 2, 2]].tolist()]
    assert sheet.class_names == digits().info.class_names


@pytest.mark.parametrize(
    ("arguments", "title"),
    [
        ([], "crop-flip (padding 1, flip False)"),  # the fields of the experiment
        (["--augment", "crop-flip", "--augment.padding", "2"], "crop-flip (padding 2, flip False)"),
        (["--augment", "resized-crop", "--augment.flip"], "resized-crop (scale 0.08-1, ratio 0.75-1.33, flip True)"),
        (["--augment", "mixup", "--augment.alpha", "1"], "mixup (alpha 1, padding 0, flip False)"),
        (["--augment", "backbones.augment:identity"], "identity"),
    ],
)
def test_any_augmentation_with_its_fields(
    arguments: list[str], title: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    titles = []
    monkeypatch.setattr(
        "backbones.commands.augment_preview.save_tiles",
        lambda *args, title, **options: (titles.append(title), save_tiles(*args, title=title, **options)),
    )
    out = str(tmp_path / "a.png")
    main([NAME, *arguments, "--out", out, "--samples", "2", "--variants", "2", "--step", "7"])
    assert titles == [f"digits-vit-tiny from step 7: {title}"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"drew 2 images of digits under {title.split()[0]} into {out}\n"


def test_a_run_folder_is_its_experiment(finished: Path) -> None:
    assert read_experiment_of(str(finished)).batch_size == 8 and read_experiment_of(NAME) is digits_vit_tiny


def test_help_lists_names_and_fields(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    main(["--help"])
    assert "--augment NAME, for another one than the run's: crop-flip, alternating-flip" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["backbones", "augment-preview", NAME, "--augment", "cutout", "--help"])
    with pytest.raises(SystemExit, match="0"):
        commands.main()
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--augment.size" in shown and "side of the square, pixels; 1 or more" in shown and "--samples" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no run folder; unknown experiment 'nowhere'"),
        (["experiments.digits:use"], "experiments.digits:use is no run folder; experiments.digits:use is a "),
        ([NAME, "--augment", "mixxup"], "unknown augment 'mixxup'; did you mean mixup"),
        ([NAME, "--out", "nowhere/out.png"], "cannot write nowhere/out.png"),
        ([NAME, "--augment", "repeated", "--augment.times", "7"], "got 64 images, wanted a multiple of 7"),
    ],
)
def test_mistakes_are_one_message(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(arguments)


def test_a_number_out_of_its_range(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([NAME, "--variants", "0"])
    assert "--variants is 0; it must be 1 or more" in " ".join(capsys.readouterr().err.replace("│", " ").split())
