"""Features of a data set as a table, against `model.features` called image by image."""

import math
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.trained import make_trained
from helpers.trees import write_folder
from torch import nn

import backbones.tree as tree
from backbones.data import Dataset, digits, image_folder, in_memory
from backbones.errors import InputError, check_known
from backbones.models import MODELS, Model, from_module
from backbones.models.base import apply_head
from backbones.run.analysis.feature_table import FeatureTable, check_new, read_table, write_table
from backbones.run.analysis.features import check_image_shape, extract, layer_shapes, to_vectors
from backbones.types import CPU

SHAPE = (3, 16, 16)


def small_digits(channels: int = 3) -> Dataset:
    """21 training and 13 test images."""
    splits = [
        (source.read(torch.arange(n), torch.arange(n)), source.labels[:n])
        for source, n in zip(digits(), (21, 13), strict=True)
    ]
    return in_memory(*((images[:, :channels], labels) for images, labels in splits), tuple("abcdefghij"), CPU)


def linear_net() -> nn.Module:
    layers = {"conv": nn.Conv2d(3, 8, 3, stride=4), "relu": nn.ReLU(), "flat": nn.Flatten(), "fc": nn.Linear(128, 10)}
    return nn.Sequential(OrderedDict(layers))


def tiny(name: str) -> Model:
    if name == "own module":
        return from_module(linear_net)
    options = {"depth": 2, "width": 24, "heads": 2, "patch_size": 8} if name == "vit-tiny" else {}
    return MODELS[name](SHAPE, 10, **options)


@pytest.mark.parametrize("layer", ["stage2", "pooled"])
def test_a_table_holds_the_features_of_each_image(layer: str) -> None:
    trained, dataset = make_trained(tiny("airbench"), digits().info), small_digits()
    table = extract(trained, dataset, layer, batch_size=8, about={})
    assert table.split.tolist() == ["train"] * 21 + ["test"] * 13
    assert table.index.tolist() == [*range(21), *range(13)] and set(table.file_name) == {""}
    assert table.features.dtype == np.float32 and table.features.flags["C_CONTIGUOUS"]
    for row in (0, 7, 8, 20, 21, 33):
        source, index = getattr(dataset, table.split[row]), torch.tensor([table.index[row]])
        image = trained.normalize(source.read(index, index))
        features = trained.model.features(trained.params, trained.model_state, image)[layer][0]
        wanted = features if features.ndim == 1 else torch.stack([each.mean() for each in features])
        torch.testing.assert_close(torch.from_numpy(table.features[row]), wanted, rtol=1e-4, atol=1e-5)
        logits = trained.model.apply(trained.params, trained.model_state, image, train=False)[0][0]
        probability, k = logits.softmax(dim=0).max(dim=0)
        assert table.predicted_class[row] == digits().info.class_names[k]
        assert table.probability[row] == pytest.approx(probability.item(), rel=1e-4)
        assert table.label[row] == source.labels[index] and table.class_name[row] == "abcdefghij"[table.label[row]]
    assert len(table.of_split("test").label) == 13


def test_tokens_are_averaged() -> None:
    trained = make_trained(tiny("vit-tiny"), digits().info)
    table = extract(trained, small_digits(), "block1", batch_size=50, about={})
    images = small_digits().test.read(torch.arange(13), torch.arange(13))
    wanted = torch.stack([sum(image) / 5 for image in trained.features(images)["block1"]])
    torch.testing.assert_close(torch.from_numpy(table.of_split("test").features), wanted.detach())
    assert torch.equal(to_vectors(torch.arange(6.0).reshape(1, 3, 2)), torch.tensor([[2.0, 3.0]]))


def test_grey_images_are_repeated_in_the_channels_of_the_model() -> None:
    trained = make_trained(tiny("airbench"), digits().info)
    grey, color = (extract(trained, small_digits(channels), "pooled", batch_size=20, about={}) for channels in (1, 3))
    assert np.array_equal(grey.features, color.features)  # digits are grey


def test_files_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset = image_folder(root=str(write_folder(tmp_path / "photos", num_train=2, num_test=1)))
    trained = make_trained(tiny("airbench"), digits().info)
    table = extract(trained, dataset, "pooled", batch_size=2, about={})
    assert [name.split("/")[-3:-1] for name in table.file_name] == [
        [split, name] for split, name in zip(table.split, table.class_name, strict=True)
    ]
    write_table(tmp_path / "a.parquet", table)
    assert read_table(tmp_path / "a.parquet").file_name.tolist() == table.file_name.tolist()


@pytest.mark.parametrize("name", ["vgg11", "airbench", "vit-tiny", "mixer-tiny", "own module"])
def test_the_head_makes_logits_of_pooled_vectors(name: str) -> None:
    trained = make_trained(tiny(name), digits().info)
    images = small_digits().test.read(torch.arange(13), torch.arange(13))
    pooled = trained.features(images)["pooled"]
    logits = apply_head(trained.model, trained.params, trained.model_state, pooled)
    torch.testing.assert_close(logits, trained.logits(images))
    table = extract(trained, small_digits(), "pooled", batch_size=20, about={})
    wanted = np.array(digits().info.class_names)[logits.argmax(dim=1)]
    assert table.of_split("test").predicted_class.tolist() == wanted.tolist()


def test_a_module_without_a_linear_head() -> None:
    """Its classes are predicted all the same."""
    model = from_module(lambda: nn.Sequential(nn.Conv2d(3, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    trained = make_trained(model, digits().info)
    with pytest.raises(InputError, match="the last layer of Sequential is not linear"):
        apply_head(model, trained.params, trained.model_state, torch.zeros(1, 3))
    images = small_digits().test.read(torch.arange(13), torch.arange(13))
    table = extract(trained, small_digits(), "pooled", batch_size=20, about={}).of_split("test")
    assert table.predicted_class.tolist() == [str(k) for k in trained.logits(images).argmax(dim=1).tolist()]


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_a_table_is_read_as_it_was_written(suffix: str, tmp_path: Path) -> None:
    table = extract(
        make_trained(tiny("vit-tiny"), digits().info), small_digits(), "stem", batch_size=9, about={"a": "é"}
    )
    path = tmp_path / f"out{suffix}"
    check_new(path)
    write_table(path, table)
    again = read_table(path)
    for name, got, wanted in zip(FeatureTable._fields, again, table, strict=True):
        assert got == wanted if name == "about" else got.dtype == wanted.dtype and np.array_equal(got, wanted), name
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    with pytest.raises(InputError, match=r"out.* exists already; choose another --out"):
        check_new(path)
    for content in (b"no table", path.read_bytes()[:-50]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"out\{suffix} "):
            read_table(path)


def test_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(InputError, match=r"other.npz is not a table of features: .*about"):
        read_table(tmp_path / "other.npz")
    with pytest.raises(InputError, match=r"there is no file .*none\.npz; `backbones features RUN"):
        read_table(tmp_path / "none.npz")
    with pytest.raises(InputError, match=r"a\.csv is neither \.parquet nor \.npz"):
        check_new(tmp_path / "a.csv")
    with pytest.raises(InputError, match="there is no folder"):
        check_new(tmp_path / "nowhere" / "a.npz")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"a\.parquet \(unlike \.npz\) needs pyarrow: pip install pyarrow"):
        check_new(tmp_path / "a.parquet")
    (tmp_path / "b.json").touch()
    with pytest.raises(InputError, match=r"b\.json exists already"):
        check_new(tmp_path / "b.npz")


def test_features_of_a_training_that_diverged() -> None:
    trained = make_trained(tiny("vit-tiny"), digits().info)
    trained = trained._replace(params=tree.map(lambda leaf: torch.full_like(leaf, math.nan), trained.params))
    with pytest.raises(InputError, match=r"features are NaN or infinite, .*choose an earlier --checkpoint"):
        extract(trained, small_digits(), "pooled", batch_size=8, about={})


def test_what_does_not_fit() -> None:
    trained, info = make_trained(tiny("vit-tiny"), digits().info), digits().info
    with pytest.raises(
        InputError, match=r"unknown layer 'block3'; did you mean .*There are: stem, block1, block2, pooled"
    ):
        check_known("layer", "block3", layer_shapes(trained))
    check_image_shape(info._replace(image_shape=(1, 16, 16)), info, "x")
    check_image_shape(info, info, "x")
    for shape in ((3, 16, 15), (1, 8, 8), (4, 16, 16)):
        with pytest.raises(InputError, match=r"x has images of .*, and the model takes \(3, 16, 16\)"):
            check_image_shape(info._replace(image_shape=shape), info, "x")
    with pytest.raises(InputError, match="the model takes"):
        check_image_shape(info, info._replace(image_shape=(1, 16, 16)), "x")
