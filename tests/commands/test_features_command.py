"""`backbones features`, `probe`, `explain` and `nearest` on a finished run, one after the other."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from helpers.trees import write_folder
from PIL import Image

import backbones.commands as commands
import backbones.random as random
from backbones.commands.explain import explain
from backbones.commands.features import features
from backbones.commands.nearest import nearest
from backbones.commands.options import read_dataset
from backbones.commands.probe import probe
from backbones.component import use
from backbones.data import Dataset, cifar10, digits, image_folder, in_memory
from backbones.data.image_files.images import read_images
from backbones.errors import InputError
from backbones.run.analysis.explain import draw_map, make_maps
from backbones.run.analysis.feature_table import read_table, write_table
from backbones.run.analysis.features import to_vectors
from backbones.run.analysis.pictures import Tile
from backbones.run.analysis.probe import probe_table
from backbones.run.analysis.trained_model import load_model, read_trained
from backbones.run.checkpoint import find_checkpoint, read_checkpoint
from backbones.run.config import parse_experiment
from backbones.run.run import run
from backbones.types import CPU


@pytest.fixture(scope="module")
def written(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features of the finished run on its own digits."""
    path = tmp_path_factory.mktemp("features") / "features.parquet"
    features(finished, out=path)
    return path


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    """The third training image, as a file."""
    index = torch.tensor([3])
    image = digits().train.read(index, index)[0]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


def even_odd(device: torch.device = CPU) -> Dataset:
    """100 grey digits, even or odd."""
    splits = [(source.read(torch.arange(50), torch.arange(50)), source.labels[:50]) for source in digits(device)]
    return in_memory(*((images[:, :1], labels % 2) for images, labels in splits), ("even", "odd"), device)


def one_class(device: torch.device = CPU) -> Dataset:
    return in_memory(*((torch.ones(4, 3, 16, 16).byte(), torch.zeros(4).long()),) * 2, ("a",), device)


def other_size(device: torch.device = CPU) -> Dataset:
    return in_memory(*((torch.ones(4, 3, 16, 8).byte(), torch.zeros(4).long()),) * 2, ("a",), device)


def test_the_table_of_a_run(finished: Path, written: Path) -> None:
    """Of its averaged weights; other programs read it."""
    path = find_checkpoint(finished)
    content = read_checkpoint(path)
    trained = load_model(content, parse_experiment(path, content.manifest.experiment), CPU)
    table, rows = read_table(written), torch.tensor([0, 5, 363])
    wanted = trained.features(digits().test.read(rows, rows))["pooled"]
    torch.testing.assert_close(torch.from_numpy(table.of_split("test").features)[rows], wanted, rtol=1e-4, atol=1e-5)
    assert table.about["layer"] == "pooled" and table.about["checkpoint"] == str(path)
    plain = pyarrow.parquet.read_table(written)
    assert plain.num_rows == 1797 and str(plain.schema.field("features").type) == "fixed_size_list<element: float>[256]"
    assert plain.column("class_name")[3].as_py() == str(table.label[3])


def test_accuracies_are_written_and_measured_again(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(written.with_suffix(".json").read_text())
    assert found["layer"] == "pooled" and found["knn"]["top1"] > 0.5 and found["linear_probe"]["top1"] > 0.8
    again = probe_table(read_table(written))
    assert {name: found[name] for name in again} == again
    probe(written)
    shown = capsys.readouterr().out
    assert shown.startswith("trained on 1433 images, accuracy on 364 test images:\n")
    assert f"{found['knn']['top1']:.2%}  20 nearest" in shown
    assert f"{found['linear_probe']['top1']:.2%}  linear probe (L2 {found['linear_probe']['l2']:g})\n" in shown
    probe(written, per_class=4, knn=False)
    shown = capsys.readouterr().out
    assert shown.startswith("trained on 40 images") and "nearest" not in shown


def test_another_data_set_with_other_classes(finished: Path, tmp_path: Path, capsys) -> None:
    features(finished, f"{__name__}:even_odd", layer="stage1", out=tmp_path / "a.npz", batch_size=30, knn=False)
    table = read_table(tmp_path / "a.npz")
    assert table.features.shape == (100, 64) and {*table.class_name} == {"even", "odd"}
    assert {*table.predicted_class} <= {*"0123456789"}
    assert "knn" not in json.loads((tmp_path / "a.json").read_text()) and "nearest" not in capsys.readouterr().out
    features(finished, f"{__name__}:one_class", out=tmp_path / "b.npz", probe=False)
    assert json.loads((tmp_path / "b.json").read_text())["knn"]["top1"] == 1


def test_the_nearest_image_is_the_image_itself(written: Path, digit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr("backbones.commands.nearest.save_tiles", lambda rows, out, title: drawn.append((rows, title)))
    nearest(written, (digit, digit), k=4)
    (first, second), title = drawn[0]
    assert len(first) == len(second) == 5 and first[0].caption == ["digit.png"]
    assert torch.equal(first[0].image, first[1].image)
    assert [*first[1].caption] == [str(digits().train.labels[3].item()), "1.000", "#3"]
    cosines = [float(tile.caption[1]) for tile in first[1:]]
    assert cosines == sorted(cosines, reverse=True) and cosines[-1] < 1
    assert title.startswith("nearest train images of digits by pooled of ")
    nearest(written, (digit,), k=1, split="test")
    assert drawn[1][0][0][1].caption[1] != "1.000"


def test_pictures(finished: Path, written: Path, digit: Path, tmp_path: Path, capsys) -> None:
    explain(finished, (digit,), layers=("stage1",), out=tmp_path / "explain.png")
    nearest(written, (digit,), out=tmp_path / "nearest.png")
    explain(finished, (digit, digit), target="3", out=tmp_path / "three.png")
    assert capsys.readouterr().out.splitlines() == [
        f"see {tmp_path / name}" for name in ("explain.png", "nearest.png", "three.png")
    ]
    for name in ("explain.png", "nearest.png", "three.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 200 and len(np.unique(np.array(picture.convert("L")))) > 50


def test_each_file_has_its_own_maps_and_a_class_may_be_named(
    finished: Path, digit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[list[Tile]]] = []
    monkeypatch.setattr("backbones.commands.explain.save_tiles", lambda rows, out, **options: drawn.append(rows))
    Image.new("RGB", (32, 32), "white").save(tmp_path / "white.png")
    with pytest.raises(InputError, match="scale it with --resize"):
        explain(finished, (tmp_path / "white.png",))
    files = (digit, tmp_path / "white.png")
    for images, options in (
        (files, {}),
        (files[:1], {}),
        (files[1:], {}),
        (files[:1], {"target": "3"}),
        (files[:1], {"checkpoint": "2"}),
    ):
        explain(finished, images, layers=("stage1",), resize=True, **options)
    both, first, second, third, earlier = (
        [torch.stack([tile.image.float() for tile in row[1:]]) for row in rows] for rows in drawn
    )
    assert (both[0] - first[0]).abs().max() <= 4 and (both[1] - second[0]).abs().max() <= 4
    trained = load_model(*read_trained(finished), CPU)
    pixels = read_images([digit], trained.info, may_resize=True)
    for found, classes in ((first, trained.logits(pixels).argmax(dim=1)), (third, torch.tensor([3]))):
        maps = make_maps(trained, pixels, classes, ("stage1",))
        wanted = torch.stack([draw_map(pixels[0], each[0]) for each in maps.values()])
        assert (found[0] - wanted.float()).abs().max() <= 1
    assert not torch.equal(first[0], third[0]) and not torch.equal(first[0], earlier[0])


def test_a_vit_shows_its_attention(experiment, tmp_path: Path, digit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(dataclasses.replace(experiment, steps=1), run_dir=tmp_path / "run")
    drawn = []
    monkeypatch.setattr("backbones.commands.explain.save_tiles", lambda rows, out, **options: drawn.append(rows))
    explain(tmp_path / "run", (digit,))
    assert [tile.caption[0] for tile in drawn[0][0]] == [
        "digit.png", "input gradient", "attention, block1", "attention, rollout"
    ]  # fmt: skip


def test_training_images_are_not_cropped_at_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = str(write_folder(tmp_path / "photos", num_train=2, num_test=1, size=(20, 30)))
    cropped = use(image_folder, root=folder, image_size=8, crop="random", smallest=0.35)
    index = torch.arange(6)
    read = [read_dataset(name, cropped, CPU)[1] for name in (None, "image-folder")]
    assert capsys.readouterr().err == ""  # not that `smallest` has no effect
    datasets = [*read, cropped.replace(crop="center").make(device=CPU), cropped.make(device=CPU)]
    images = [dataset.train.read(index, index) for dataset in datasets]
    assert torch.equal(images[0], images[2]) and torch.equal(images[1], images[2])
    assert not torch.equal(images[3], images[2])


def noise(device: torch.device = CPU, *, size: int = 30, seed: int = 0) -> Dataset:
    """As many images of noise in each split."""
    images = torch.randint(256, (size, 1, 16, 16), dtype=torch.uint8, generator=random.generator(seed))
    return in_memory((images, torch.arange(size) % 2), (images, torch.arange(size) % 2), ("a", "b"), device)


def in_a_folder(device: torch.device = CPU, *, root: str) -> Dataset:
    """A class named after the folder."""
    split = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    return in_memory(split, split, (root,), device)


def test_an_option_that_has_the_same_name_alone_is_not_taken_over() -> None:
    """Of digits `size` is the height of an image."""
    assert read_dataset(f"{__name__}:noise", use(digits, size=16), CPU)[1].train.size == 30
    assert read_dataset(f"{__name__}:noise", use(noise, size=20), CPU)[1].train.size == 20
    assert read_dataset(f"{__name__}:in_a_folder", use(cifar10, root="mine"), CPU)[1].info.class_names == ("mine",)


def test_mistakes(finished: Path, written: Path, digit: Path, tmp_path: Path) -> None:
    before, text = written.read_bytes(), tmp_path / "text.parquet"
    text.write_text("no table")
    (empty := tmp_path / "empty.npz").touch()
    calls = {
        "features.parquet exists already": lambda: features(finished, out=written),
        "unknown layer 'stage9'; did you mean stage": lambda: features(
            finished, layer="stage9", out=tmp_path / "x.npz"
        ),
        "unknown data 'digit'; did you mean digits": lambda: features(finished, "digit", out=tmp_path / "x.npz"),
        "other-size has images of (3, 16, 8)": lambda: features(
            finished, f"{__name__}:other_size", out=tmp_path / "x.npz"
        ),
        "there is no checkpoint in": lambda: features(tmp_path, out=tmp_path / "x.npz"),
        "--batch-size is 0": lambda: features(finished, out=tmp_path / "x.npz", batch_size=0),
        "--per-class is 0": lambda: probe(written, per_class=0),
        "--seed is -1": lambda: probe(written, seed=-1),
        "empty.npz is not a table of features": lambda: probe(empty),
        "there is no file": lambda: probe(tmp_path / "x.parquet"),
        "cannot be read as parquet": lambda: probe(text),
        "no image files are named; give some after the run": lambda: explain(finished, ()),
        "no image files are named; give some after the features": lambda: nearest(written, ()),
        "unknown class 'cat'": lambda: explain(finished, (digit,), target="cat"),
        "--k is 0": lambda: nearest(written, (digit,), k=0),
        "wanted a file name with a suffix": lambda: explain(finished, (digit,), out=tmp_path),
        "checkpoints/best/checkpoints; name a run": lambda: features(
            finished / "checkpoints" / "best", out=tmp_path / "x.npz"
        ),
        "there is no checkpoint 900 in": lambda: features(finished / "checkpoints" / "900", out=tmp_path / "x.npz"),
        "already exists and does not look like a plot of matplotlib": lambda: explain(finished, (digit,), out=digit),
        "parquet already exists": lambda: nearest(written, (digit,), out=written),
        f"such as {tmp_path}/a.png": lambda: explain(finished, (digit,), out=tmp_path / "a"),
        "cannot write": lambda: explain(finished, (digit,), out=tmp_path / "nowhere" / "a.png"),
    }
    for message, call in calls.items():
        with pytest.raises(InputError) as error:
            call()
        assert message in str(error.value)
    assert written.read_bytes() == before and not [*tmp_path.glob("x.*")]


def test_too_few_images_for_a_probe(finished: Path, written: Path, tmp_path: Path, capsys) -> None:
    """The table is written all the same, with the neighbours that there are."""
    features(finished, f"{__name__}:one_class", out=tmp_path / "one.npz")
    assert "note: a linear probe chooses its regularisation on a fifth" in capsys.readouterr().out
    found = json.loads((tmp_path / "one.json").read_text())
    assert found["knn"] == {"top1": 1.0, "neighbours": 4, "temperature": 0.07} and "linear_probe" not in found
    with pytest.raises(InputError, match="there are 4 images of 1 classes: give it more"):
        probe(tmp_path / "one.npz")


def test_a_checkpoint_that_is_gone(written: Path, digit: Path, tmp_path: Path) -> None:
    table = read_table(written)
    write_table(path := tmp_path / "a.npz", table._replace(about={**table.about, "checkpoint": str(tmp_path / "8")}))
    with pytest.raises(InputError, match=r"a\.npz was made with a checkpoint that cannot be read: .*no checkpoint in"):
        nearest(path, (digit,))


def test_a_checkpoint_that_has_changed(finished: Path, written: Path, digit: Path, tmp_path: Path) -> None:
    """The features of other weights, or of other images, are not those of the file's neighbours."""
    table = read_table(written)
    for about in ({"weights": "0"}, {"train": "0"}):
        path = tmp_path / f"{''.join(about)}.npz"
        write_table(path, table._replace(about={**table.about, **about}))
        with pytest.raises(
            InputError, match=r"was made with other weights than those of .*, or other data than digits"
        ):
            nearest(path, (digit,))


def test_command_lines(finished: Path, tmp_path: Path, digit: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for line in (
        f"features {finished} {__name__}:even_odd --layer stage1 --out a.parquet --no-probe",
        "probe a.parquet --per-class 20 --no-knn",
        f"nearest a.parquet {digit} --k 1 --out b.png",
        f"nearest a.parquet {digit} {digit} --k 3 --out b.png",
        f"explain {finished} {digit} --layers stage1 stage2 --out c.png",
    ):
        commands.run(*line.split())
    assert {"a.parquet", "a.json", "b.png", "c.png"} <= {path.name for path in tmp_path.iterdir()}
    first, accuracy, knn, second, probe, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("100 vectors of 64 numbers, stage1 of ") and first.endswith(" on even-odd: a.parquet")
    assert accuracy == "trained on 50 images, accuracy on 50 test images:" and knn.endswith("20 nearest neighbours")
    assert second.startswith("trained on 40 images") and "linear probe" in probe
    assert rest == ["see b.png", "see b.png", "see c.png"]
    with pytest.raises(InputError, match="--layers is given twice; give all its values after one"):
        commands.run(*f"explain {finished} {digit} --layers stage1 --layers stage2".split())


def test_many_files_are_computed_a_few_at_a_time(
    finished: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, sizes, drawn = torch.arange(35), [], []
    images = digits().train.read(index, index)
    files = tuple(tmp_path / f"{i}.png" for i in range(35))
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    for module in ("explain", "nearest"):
        monkeypatch.setattr(f"backbones.commands.{module}.save_tiles", lambda rows, *args, **kw: drawn.append(rows))
    monkeypatch.setattr(
        "backbones.commands.explain.make_maps", lambda *args: sizes.append(len(args[1])) or make_maps(*args)
    )
    monkeypatch.setattr("backbones.commands.nearest.to_vectors", lambda x: sizes.append(len(x)) or to_vectors(x))
    explain(finished, files)
    nearest(written, files, k=1)
    assert sizes == [16, 16, 3] * 2
    for rows in drawn:
        assert all(torch.equal(row[0].image, image) for row, image in zip(rows, images, strict=True))
    assert [row[1].caption[2] for row in drawn[1]] == [f"#{i}" for i in range(35)]


class Scaled(torch.nn.Module):
    """Its logits are not what its last layer gives."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 2 * self.head(self.conv(images).relu().mean(dim=(2, 3)))


def test_the_input_gradient_is_drawn_where_grad_cam_is_not_possible(
    experiment, digit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(dataclasses.replace(experiment, model=use(Scaled), steps=1), run_dir=tmp_path / "run")
    drawn = []
    monkeypatch.setattr("backbones.commands.explain.save_tiles", lambda rows, out, **options: drawn.append(rows))
    explain(tmp_path / "run", (digit,))
    assert [tile.caption[0] for tile in drawn[0][0]] == ["digit.png", "input gradient"]
    assert "note: there is the input gradient alone; what Scaled does after its last layer" in capsys.readouterr().out
    with pytest.raises(InputError, match="what Scaled does after its last layer is not known"):
        explain(tmp_path / "run", (digit,), layers=("conv",))


def test_a_data_set_that_was_moved(experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "photos")
    run(dataclasses.replace(experiment, data=use(image_folder, root=str(folder)), steps=1), run_dir=tmp_path / "run")
    folder.rename(tmp_path / "moved")
    command = f"features {tmp_path}/run --out {tmp_path}/a.npz --no-probe"
    with pytest.raises(InputError, match="photos is not a folder"):
        commands.run(*command.split())
    commands.run(*command.split(), "--data.root", str(tmp_path / "moved"))
    moved = str(tmp_path / "run"), "--data.root", str(tmp_path / "moved")
    commands.run("evaluate", *moved)
    commands.run("augment-preview", *moved, "--out", str(tmp_path / "preview.png"))
    assert commands.run("audit", *moved)
    commands.run("report", *moved, "--out", str(tmp_path / "report.html"))
    assert "left out" not in (tmp_path / "report.html").read_text()
    image = next((tmp_path / "moved").rglob("*.png"))
    nearest(tmp_path / "a.npz", (image,), out=tmp_path / "b.png", data_root=str(tmp_path / "moved"))
    table = read_table(tmp_path / "a.npz")
    about = {name: value for name, value in table.about.items() if name != "train"}
    write_table(tmp_path / "old.npz", table._replace(about=about))
    with pytest.raises(InputError, match="is of an earlier version of this program; write it anew"):
        nearest(tmp_path / "old.npz", (image,), data_root=str(tmp_path / "moved"))
    assert len(read_table(tmp_path / "a.npz").label) == 36
