import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backbones.models import MODELS
from backbones.overhead import layer_table, main, measure_latency, measure_overhead

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("name", "num_params", "giga_macs"),
    [
        ("vgg11", 9_225_610, 0.1528),
        ("vgg19-bn", 20_035_018, 0.3987),
        ("resnet18", 11_173_962, 0.5567),
        ("preactresnet18", 11_173_066, 0.5568),
        ("resnext29-32x4d", 4_775_754, 0.6800),
        ("se-resnet18", 11_263_042, 0.5570),
        ("cbam-resnet18", 11_263_834, 0.5573),
        ("mobilenet", 3_217_226, 0.0472),
        ("shufflenet-g8", 913_138, 0.0456),
        ("vit-tiny", 5_362_378 + 2 * 192, 0.3666),  # and the final LayerNorm, which the reference has not
    ],
)
def test_cifar_models_cost_what_the_reference_does(name: str, num_params: int, giga_macs: float) -> None:
    overhead = measure_overhead(MODELS[name]((3, 32, 32), 10), (3, 32, 32))
    assert overhead.num_params == num_params
    assert overhead.macs / 1e9 == pytest.approx(giga_macs, rel=0.001)


@pytest.mark.parametrize(
    ("name", "num_params"), [("wrn-16-8", 10_961_370), ("wrn-28-10", 36_479_194), ("wrn-40-4", 8_949_210)]
)
def test_wide_resnets_have_the_published_sizes(name: str, num_params: int) -> None:
    """Table 4 of arXiv 1605.07146 rounds them to 11.0, 36.5 and 8.9 millions."""
    assert measure_overhead(MODELS[name]((3, 32, 32), 10), (3, 32, 32)).num_params == num_params


def test_activations_are_the_outputs_of_convolutions_and_matrix_products() -> None:
    overhead = measure_overhead(MODELS["airbench"]((3, 32, 32), 10), (3, 32, 32))
    sizes = [(24, 31), (64, 31), (64, 15), (256, 15), (256, 7), (256, 7), (256, 3)]
    assert overhead.activations == sum(channels * side**2 for channels, side in sizes) + 10


def test_layers_add_up_to_the_model() -> None:
    lines = layer_table(MODELS["resnet18"]((3, 32, 32), 10), (3, 32, 32), depth=1).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert rows[0] == ["module", "#parameters", "#MACs", "#activations"]
    assert [row[0] for row in rows[2:]] == ["model", "stem", "stages", "head"]
    assert rows[2][1:] == ["11.174M", "0.557G", "0.614M"]


def test_latency_is_measured_after_a_real_pass() -> None:
    model = MODELS["airbench"]((3, 32, 32), 10)
    shapes = []
    spy = model._replace(apply=lambda *args, **kwargs: shapes.append(args[2].shape) or model.apply(*args, **kwargs))
    assert measure_latency(spy, (3, 32, 32), batch_size=5, device=torch.device("cpu"), seconds=0.1) > 0
    assert set(shapes) == {(5, 3, 32, 32)}


def test_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(("airbench", "shufflenet-g8"), batch_size=2, device="cpu")
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert header == "| model | parameters | MACs (M) | activations (M) | ms for 2 images (cpu) |"
    assert [row.split("|")[1].strip() for row in rows] == ["airbench", "shufflenet-g8"]
    assert "| 913,138 | 45.6 |" in rows[1]

    main(("resnet18",), image_size=64, num_classes=1000, stem="imagenet", batch_size=2, device="cpu", json=True)
    (row,) = json.loads(capsys.readouterr().out)
    assert row["num_params"] == 11_689_512 and row["milliseconds"] > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["resnet19"], "unknown model 'resnet19'; did you mean resnet18"),
        (["vit-tiny", "--image-size", "30"], "a patch size of 4 does not divide images of 30x30 pixels"),
        (["airbench", "--image-size", "8"], "images of 8x8 pixels are too small"),
        (["vit-tiny", "--batch-size", "0"], "batch_size is 0; it must be 1 or more"),
        (["vgg11", "--stem", "imagenet"], "--stem is not for vgg11, which has no such field"),
        (["--depth", "2"], "--depth shows the layers of one model"),
    ],
)
def test_mistakes_are_one_line(args: list[str], message: str) -> None:
    command = [sys.executable, "-m", "backbones.overhead", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
