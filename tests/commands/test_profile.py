import json
from functools import partial

import pytest

from backbones.commands import run
from backbones.commands.profile import profile
from backbones.errors import InputError
from backbones.models import MODELS
from backbones.models.cost import measure_cost, measure_latency


@pytest.mark.slow
def test_table_and_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backbones.commands.profile.measure_latency", partial(measure_latency, seconds=0.05))
    profile(("airbench", "shufflenet-g8"), batch_size=2, device="cpu")
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert header == "| model | parameters | MACs (M) | activations (M) | ms for 2 images (cpu) |"
    assert [row.split("|")[1].strip() for row in rows] == ["airbench", "shufflenet-g8"]
    assert "| 913,138 | 45.6 |" in rows[1]

    profile(("resnet18",), image_size=64, num_classes=1000, stem="imagenet", batch_size=2, device="cpu", json=True)
    (row,) = json.loads(capsys.readouterr().out)
    assert row["num_params"] == 11_689_512 and row["milliseconds"] > 0

    profile(("vit-tiny",), image_size=16, channels=1, patch_size=8, batch_size=1, device="cpu", json=True)
    (row,) = json.loads(capsys.readouterr().out)
    wanted = measure_cost(MODELS["vit-tiny"]((1, 16, 16), 10, patch_size=8), (1, 16, 16))
    assert {name: row[name] for name in wanted._fields} == wanted._asdict()


def test_the_layers_of_one_model(capsys: pytest.CaptureFixture[str]) -> None:
    for depth, deepest in ((1, "stages"), (2, "stages.0")):
        run("profile", "airbench", "--depth", str(depth))
        assert deepest in capsys.readouterr().out.replace("|", " ").split()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["resnet19"], "unknown model 'resnet19'; did you mean resnet18"),
        (["vit-tiny", "--image-size", "30"], "vit-tiny: a patch size of 4 does not divide images of 30x30 pixels"),
        (["airbench", "--image-size", "8"], "images of 8x8 pixels are too small"),
        (["vit-tiny", "--batch-size", "0"], "--batch-size is 0; it must be 1 or more"),
        (["vgg11", "--stem", "imagenet"], "--stem is not for vgg11, which has no such field"),
        (["--depth", "2"], "--depth shows the layers of one model"),
    ],
)
def test_mistakes_are_one_line(args: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run("profile", *args)
