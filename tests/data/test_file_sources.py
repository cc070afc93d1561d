import errno
import os
import shutil
import tarfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from helpers.trees import CLASSES, encoded, in_order, random_image, write_folder, write_parquet, write_table, write_tar
from PIL import Image

import backbones.distributed as distributed
import backbones.random as random
from backbones.component import use
from backbones.data import DATASETS, Dataset, eval_batches, image_folder, make_batches
from backbones.data.image_files import dataset as files_module, decoded as decoded_module
from backbones.data.image_files.cache import stamp
from backbones.data.image_files.decoded import Decoded
from backbones.data.image_files.images import center_crop, decode, resize
from backbones.data.image_files.listing import Files, Names, version_of
from backbones.data.image_files.reader import LARGE
from backbones.data.parquet import list_parquet
from backbones.errors import InputError
from backbones.types import CPU

SOURCES = ("image-folder", "image-tar", "image-list", "parquet")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def everything(dataset: Dataset) -> list[torch.Tensor]:
    found = []
    for source in (dataset.train, dataset.test):
        index = torch.arange(source.size)
        found += [source.read(index, random.fold_in(random.key(0), index)), source.labels]
    return found


def roots(folder: Path, tmp_path: Path) -> dict[str, Path]:
    return {
        "image-folder": folder,
        "image-tar": write_tar(folder, tmp_path / "a.tar"),
        "image-list": write_table(folder, tmp_path / "a.csv"),
        "parquet": write_parquet(folder, tmp_path / "parquet"),
    }


def test_all_sources_read_the_same_images(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos é")
    pixels = [decode(path.read_bytes(), channels=3, background=(0, 0, 0)) for path in in_order(folder)]
    labels = [CLASSES.index(path.parent.name) for path in in_order(folder)]
    for name, root in roots(folder, tmp_path).items():
        for dataset in (DATASETS[name](root=str(root)), DATASETS[name](root=str(root))):  # listed, then remembered
            assert dataset.info.class_names == CLASSES and dataset.info.image_shape == (3, 16, 16)
            images, train_labels, test_images, test_labels = everything(dataset)
            assert torch.equal(torch.cat([test_images, images]), torch.stack(pixels)), name
            assert torch.cat([test_labels, train_labels]).tolist() == labels, name
            assert dataset.info.center is None
            names = [source.file_name(i) for source in dataset[::-1] for i in range(source.size)]
            assert [Path(name).name for name in names] == [path.name for path in in_order(folder)], name
    mean = torch.stack(pixels[12:]).double().mean(dim=(0, 2, 3))
    assert dataset.info.mean == pytest.approx(mean.tolist())


def test_a_tar_may_hold_the_tree_in_a_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos")
    for i, top in enumerate(("photos/", "./", "a/b/")):
        root = write_tar(folder, tmp_path / f"{i}.tar", top)
        assert DATASETS["image-tar"](root=str(root)).train.digest() == image_folder(root=str(folder)).train.digest()


def test_what_is_beside_the_tree_in_a_tar_is_no_class(tmp_path: Path) -> None:
    """Folders above it, an image and another folder beside it."""
    folder = write_folder(tmp_path / "photos")
    (tmp_path / "notes" / "more").mkdir(parents=True)
    (tmp_path / "notes" / "a.txt").write_text("")
    write(tmp_path / "preview.png", encoded(random_image(0)))
    for i, (tree, holdout) in enumerate(((folder, None), (folder / "train", 0.25))):
        with tarfile.open(tmp_path / f"{i}.tar", "w") as tar:
            tar.add(tmp_path, "data", recursive=False)
            tar.add(tmp_path / "preview.png", "data/preview.png")
            tar.add(tmp_path / "notes", "data/notes")
            tar.add(tree, "data/photos")
        dataset = DATASETS["image-tar"](root=str(tmp_path / f"{i}.tar"), holdout=holdout)
        wanted = image_folder(root=str(tree), holdout=holdout)
        assert dataset.info == wanted.info and dataset.train.digest() == wanted.train.digest()


def test_listings_are_remembered_until_the_folder_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "photos")
    listed = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scan(path))

    def number_listed() -> int:
        listed.clear()
        image_folder(root=str(folder))
        return len([path for path in listed if str(path).startswith(str(folder))])

    assert number_listed() == number_listed() == 9  # too new: it may change again within one tick of the clock
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (1e9, 1e9))
    assert [number_listed(), number_listed()] == [9, 0]
    shutil.copy(in_order(folder)[0], folder / "train" / "cat" / "new.png")
    assert number_listed() == 9 and image_folder(root=str(folder)).train.size == 25
    (file,) = (tmp_path / "cache" / "backbones").glob("folder-*.npz")
    for damaged in (b"", file.read_bytes()[:-50]):
        file.write_bytes(damaged)
        assert number_listed() == 9


def test_a_folder_may_hold_parquet_and_a_tree_of_files(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "photos")
    write_parquet(write_folder(tmp_path / "others", num_train=2), root)
    for path in [root, *root.rglob("*")]:
        os.utime(path, (1e9, 1e9))
    for _ in "12":
        assert [DATASETS[name](root=str(root)).train.size for name in ("parquet", "image-folder")] == [6, 24]


def test_held_out_images_stay_when_others_come(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", num_train=40)
    shutil.rmtree(folder / "test")
    whole = image_folder(root=str(folder / "train"), holdout=0.25)
    assert 10 < whole.test.size < 50 and whole.train.size + whole.test.size == 120
    names = [{Path(name).name for name in reader_names(source)} for source in (whole.train, whole.test)]
    for i in range(40):
        (folder / "train" / "cat" / f"new {i}.png").write_bytes(encoded(random_image(1000 + i)))
    more = image_folder(root=str(folder / "train"), holdout=0.25)
    assert more.train.size + more.test.size == 160 and more.test.size > whole.test.size
    for source, old in zip((more.train, more.test), names, strict=True):
        assert old <= {Path(name).name for name in reader_names(source)}
    tar = tmp_path / "a.tar"
    with tarfile.open(tar, "w") as file:
        file.add(folder / "train", ".")
    assert DATASETS["image-tar"](root=str(tar), holdout=0.25).test.digest() == more.test.digest()


def test_rows_of_one_name_are_held_out_one_by_one_and_copies_together(tmp_path: Path) -> None:
    images = [encoded(random_image(i, height=4 + i)) for i in range(60)] * 2
    rows = [{"bytes": content, "path": "0.png"} for content in images]
    with_columns(tmp_path / "a.parquet", image=rows, label=[0] * 120)
    dataset = DATASETS["parquet"](root=str(tmp_path), holdout=0.5, image_size=8)
    files = [source.read.__self__.files for source in dataset]
    train, test = ([each.content(i) for i in range(each.size)] for each in files)
    assert 40 <= len(test) <= 80 and not {*train} & {*test}


def reader_names(source) -> list[str]:
    return list(source.read.__self__.files.names)


def test_a_crop_depends_on_the_key_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", size=(24, 32))
    dataset = image_folder(root=str(folder), image_size=12, crop="random", smallest=0.2)
    index = torch.tensor([3, 3, 5])
    keys = random.fold_in(random.key(0), torch.arange(3))
    images = dataset.train.read(index, keys)
    assert torch.equal(images[1:], dataset.train.read(index[1:], keys[1:]))
    assert not torch.equal(images[0], images[1])
    whole = decode(in_order(folder / "train")[3].read_bytes(), channels=3, background=(0, 0, 0))
    top, left, height, width = random.rectangle(keys[0], 24, 32, (0.2, 1.0), (3 / 4, 4 / 3))
    assert torch.equal(images[0], resize(whole[:, top : top + height, left : left + width], 12, 12))
    held_out = decode(in_order(folder / "test")[0].read_bytes(), channels=3, background=(0, 0, 0))
    assert torch.equal(dataset.test.read(index * 0, keys)[0], center_crop(held_out, 12, 12, 0.875))
    assert dataset.info.center == 0.875
    closer = image_folder(root=str(folder), image_size=12, center=0.5)
    assert closer.info.center == 0.5
    assert torch.equal(closer.test.read(index * 0, keys)[0], center_crop(held_out, 12, 12, 0.5))


def test_workers_and_cache_change_no_pixel(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", size=(24, 20))
    options = {"root": str(folder), "image_size": 12, "crop": "random"}
    plain = image_folder(**options)
    for name, more in {
        "workers": {"workers": 3},
        "cache": {"cache": str(tmp_path / "kept")},
        "both": {"workers": 1, "cache": str(tmp_path / "kept")},
    }.items():
        dataset = image_folder(**options, **more)
        assert dataset.info == plain.info
        for source, expected in zip((dataset.train, dataset.test), (plain.train, plain.test), strict=True):
            ours, theirs = (make_batches(each, seed=1, batch_size=7, device=CPU) for each in (source, expected))
            for step in (0, 1, 2, 9, 3):
                assert torch.equal(ours(step).images, theirs(step).images), name
            pairs = zip(*(eval_batches(each, batch_size=5, device=CPU) for each in (source, expected)), strict=True)
            assert all(torch.equal(a.images, b.images) and torch.equal(a.weight, b.weight) for a, b in pairs), name


def test_images_are_decoded_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = write_folder(tmp_path / "photos"), tmp_path / "deep" / "kept"
    wanted = everything(image_folder(root=str(folder)))
    written = []
    keep = files_module.cache_decoded
    monkeypatch.setattr(
        files_module, "cache_decoded", lambda into, parts: keep(into, lambda: (written.append(into), parts())[1])
    )
    threads = [threading.Thread(target=image_folder, kwargs={"root": str(folder), "cache": str(cache)}) for _ in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 2 and len(set(written)) == 2  # the two splits, once each
    dataset = image_folder(root=str(folder), cache=str(cache))
    assert all(torch.equal(a, b) for a, b in zip(everything(dataset), wanted, strict=True)) and len(written) == 2
    changed = in_order(folder / "train")[0]
    changed.write_bytes(encoded(random_image(99)))
    os.utime(changed, (1e9, 1e9))
    new = everything(image_folder(root=str(folder), cache=str(cache)))
    assert len(written) == 3 and torch.equal(new[0][0], torch.from_numpy(random_image(99)).permute(2, 0, 1))
    grey = image_folder(root=str(folder), cache=str(cache), channels=1)  # is decoded in another way
    assert torch.equal(everything(grey)[0], everything(image_folder(root=str(folder), channels=1))[0])
    assert grey.info.image_shape == (1, 16, 16) and len(written) == 5
    alpha = np.dstack([random_image(99), np.zeros((16, 16), np.uint8)])
    changed.write_bytes(encoded(alpha))
    for color in ((0, 0, 0), (255, 9, 0)):
        behind = image_folder(root=str(folder), cache=str(cache), background=color)
        assert behind.info.background == color
        assert (everything(behind)[0][0] == torch.tensor(color, dtype=torch.uint8)[:, None, None]).all()
    assert not list(cache.glob("decoded-*-*"))  # nothing unfinished


@pytest.mark.parametrize("damage", ["flip", "cut", "index"])
def test_a_damaged_cache_is_named(damage: str, tmp_path: Path) -> None:
    folder, cache = write_folder(tmp_path / "photos"), tmp_path / "kept"
    image_folder(root=str(folder), cache=str(cache))
    for path in cache.glob("*/*.bin"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-1] if damage == "cut" else path.read_bytes())
        if damage == "index":
            (path.parent / "index.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"decoded-\w+ is damaged; delete it, and the images are decoded again"):
        everything(image_folder(root=str(folder), cache=str(cache)))


def spoil(folder: Path) -> list[str]:
    """Damage some files of a tree; what is said about them."""
    train, test = in_order(folder / "train"), in_order(folder / "test")
    train[2].write_bytes(b"")
    train[9].write_bytes(train[9].read_bytes()[:-20])
    test[1].unlink()
    test[1].symlink_to("nowhere")
    return [
        f"{train[2]}: it is empty",
        f"{train[9]}: it is not an image, or is damaged",
        f"{test[1]}: No such file or directory",
    ]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_named_or_left_out(cached: bool, workers: int, tmp_path: Path) -> None:
    clean, folder = write_folder(tmp_path / "clean"), write_folder(tmp_path / "photos")
    said = spoil(folder)
    options = {"root": str(folder), "workers": workers, **({"cache": str(tmp_path / "kept")} if cached else {})}
    with pytest.raises(InputError, match=r"cannot read .*photos.*; remove it, or train without such files by"):
        everything(image_folder(**options))
    dataset = image_folder(**options, on_error="skip")
    assert [*dataset.train.bad_files, *dataset.test.bad_files] == said
    for each in (in_order(clean / "train")[2], in_order(clean / "train")[9], in_order(clean / "test")[1]):
        each.unlink()
    expected = image_folder(root=str(clean))
    assert all(torch.equal(a, b) for a, b in zip(everything(dataset), everything(expected), strict=True))
    assert dataset.train.digest() == expected.train.digest() and dataset.info == expected.info


def change(folder: Path, what: str) -> None:
    cat = folder / "train" / "cat"
    if what == "no such folder":
        shutil.rmtree(folder)
    elif what == "empty":
        shutil.rmtree(folder / "train")
        shutil.rmtree(folder / "test")
    elif what == "no test":
        shutil.rmtree(folder / "test")
    elif what == "unknown class":
        (folder / "test" / "cow").mkdir()
        shutil.copy(in_order(cat)[0], folder / "test" / "cow" / "1.jpg")
    elif what == "no test images":
        for path in in_order(folder / "test"):
            path.unlink()
    elif what == "another size":
        in_order(cat)[2].write_bytes(encoded(random_image(1, 20, 30)))


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("no such folder", {}, r"photos is not a folder; set --data.root to one that holds train/CLASS"),
        ("empty", {}, r"there are no images in .*photos; wanted train/CLASS/\* and test/CLASS/\*, or CLASS"),
        ("no test", {}, r"photos has no test split; wanted a folder test or val beside train, or --data.holdout"),
        ("unknown class", {}, r"photos: there are test images of cow, and no training images of that class; the trai"),
        ("no test images", {}, r"the test split has no images; wanted one"),
        ("another size", {}, r"photo 2.*png has 30x20 pixels, and the first image 16x16; give .*--data.image-size 16"),
        ("", {"holdout": 0.1}, r"photos has a test split, and --data.holdout is 0.1; leave it out"),
    ],
)  # fmt: skip
def test_what_is_no_data_set_says_why(what: str, options: dict, message: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos")
    change(folder, what)
    with pytest.raises(InputError, match=message):
        everything(image_folder(root=str(folder), **options))


def test_what_is_odd_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "photos")
    (folder / "train" / "cow").mkdir()
    (folder / "train" / "cat" / "notes.txt").write_text("")
    (folder / "train" / "cat" / ".DS_Store").write_text("")
    (folder / "train" / "lost.png").write_bytes(encoded(random_image(0)))
    for path in in_order(folder):
        if path.suffix in (".png", ".JPG"):
            path.write_bytes(encoded(np.array(Image.new("RGB", (16, 16), (200, 100, 50)))))
    shutil.copytree(folder / "test", folder / "val")
    dataset = image_folder(root=str(folder))
    out = capsys.readouterr().out
    assert "has the splits test, val: test is held out, the rest not used" in out
    assert f"note: 2 files in {folder} are not images of a class (.txt): ignored\n" in out
    assert "note: no training images in 1 of 4 classes: cow\n" in out
    assert "note: all pixels of the training images are equal in channel 0, 1, 2\n" in out
    assert dataset.info.std == (1.0, 1.0, 1.0) and dataset.info.num_classes == 4


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def cut(path: Path, end: int) -> Path:
    return write(path, path.read_bytes()[:end])


def gzipped(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        tar.add(path.parent)
    return path


def two_tables(folder: Path, label: str) -> Path:
    write(folder / "train.csv", f"path,label,split\nx.png,{label},val\n".encode())
    write(folder / "test.csv", f"path,label\ny.png,{label}\n".encode())
    return folder


def with_columns(path: Path, **columns: list) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def two_splits(folder: Path, trained: str, tested: str) -> Path:
    for split, label in (("train", trained), ("test", tested)):
        with_columns(folder / f"{split}.parquet", image=[encoded(random_image(0))], label=[label])
    return folder


def rowless(root: Path) -> Path:
    for path in root.rglob("*.parquet"):
        schema = pyarrow.schema([("img", pyarrow.binary()), ("label", pyarrow.int64())])
        pyarrow.parquet.write_table(schema.empty_table(), path)
    return root


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("image-tar", lambda p, t: t / "absent.tar", "absent.tar is not a file; set --data.root to a tar"),
        ("image-tar", lambda p, t: write(t / "a.tar", b"hello" * 999), "a.tar is not a tar, or is damaged"),
        ("image-tar", lambda p, t: cut(write_tar(p, t / "a.tar"), 9000), "a.tar is (cut short|not a tar)"),
        ("image-tar", lambda p, t: gzipped(t / "a.tar"), "a.tar is compressed by gzip, where no file can be re"),
        ("image-list", lambda p, t: t / "absent.csv", "absent.csv cannot be read: No such file"),
        ("image-list", lambda p, t: write(t / "a.csv", b"path,class\nx,1\n"), r"a.csv has no column label in its"),
        ("image-list", lambda p, t: write(t / "a.csv", b"path,label\nx,\n"), r"a.csv, line 2: wanted path, label and"),
        ("image-list", lambda p, t: write(t / "a.csv", b"path,label\n\xff,1\n"), r"a.csv is not a CSV file in UTF-8"),
        ("image-list", lambda p, t: write(t / "a.csv", b"path,label\na,b.jpg,cat\n"), r"a.csv, line 2: wanted path"),
        ("image-list", lambda p, t: write(t / "a.csv", b"path,label,split\na,b,all\n"), r"a.csv, line 2: wanted path"),
        ("image-list", lambda p, t: two_tables(t, "cat"), r"train.csv has a line of the split val, x.png; leave that"),
        ("parquet", lambda p, t: write_parquet(p, t / "hub", test_classes=["a", "b", "c"]),
         "the classes are a, b, c in .*test-00000.*, and cat, dog.b, Éclair 2.0 in .*train-00000"),
        ("parquet", lambda p, t: with_columns(t / "a.parquet", image=[{"bytes": None, "path": "1.png"}], label=[0]),
         "a.parquet, row 0: there is the path of an image, 1.png, and not its bytes; write the files anew"),
        ("parquet", lambda p, t: two_splits(t, "cat", "cow"), "there are test images of cow, and no training images"),
        ("parquet", lambda p, t: rowless(write_parquet(p, t / "hub")), "the parquet files in .*hub have no rows"),
        ("parquet", lambda p, t: t / "absent", "there are no parquet files in .*absent"),
        ("parquet", lambda p, t: write(t / "a.parquet", b"hello"), "a.parquet cannot be read as parquet"),
    ],
)  # fmt: skip
def test_other_sources_say_what_is_wrong(
    name: str, make: Callable[[Path, Path], Path], message: str, tmp_path: Path
) -> None:
    root = make(write_folder(tmp_path / "photos"), tmp_path)
    with pytest.raises(InputError, match=message):
        DATASETS[name](root=str(root), holdout=0.5)


def test_labels_of_a_table_that_look_alike_are_one_class(tmp_path: Path) -> None:
    """Whatever spaces are around them, and however an accent is encoded."""
    paths = in_order(write_folder(tmp_path / "photos"))
    labels = [" \u00c9clair", "E\u0301clair ", "cat", " cat "]
    rows = [f"{path},{labels[i % 4]}" for i, path in enumerate(paths)]
    table = write(tmp_path / "a.csv", "\n".join(["path,label", *rows]).encode())
    assert DATASETS["image-list"](root=str(table), holdout=0.3).info.class_names == ("cat", "\u00c9clair")


def test_an_image_of_a_table_has_one_split_and_one_label(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos")
    lines = write_table(folder, tmp_path / "a.csv").read_text()
    again = f"photos/./{in_order(folder)[0].relative_to(folder)}"
    for label, split in (("cat", "train"), ("dog.b", "test")):
        write(tmp_path / "b.csv", f"{lines}{again},{label},{split}".encode())
        with pytest.raises(InputError, match=rf"has the image .*photo 0.* as cat in test and as {label} in {split};"):
            DATASETS["image-list"](root=str(tmp_path / "b.csv"))
    write(tmp_path / "b.csv", f"{lines}{again},cat,test".encode())
    assert DATASETS["image-list"](root=str(tmp_path / "b.csv")).test.size == 13


def test_labels_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos")
    rows = [f"{path},{i % 12}" for i, path in enumerate(in_order(folder))]
    table = write(tmp_path / "a.csv", "\n".join(["path,label", *rows]).encode())
    dataset = DATASETS["image-list"](root=str(table), holdout=0.3)
    assert dataset.info.class_names == tuple(str(k) for k in range(12))
    (tmp_path / "lists").mkdir()
    for name, part in (("train", rows[:24]), ("val", rows[24:])):
        write(tmp_path / "lists" / f"{name}.csv", "\n".join(["path,label", *part]).encode())
    assert DATASETS["image-list"](root=str(tmp_path / "lists")).test.size == 12


def test_a_root_must_be_named() -> None:
    with pytest.raises(InputError, match="image-folder needs a value for root"):
        use(image_folder).make()


def test_a_tar_with_other_files_reads_as_its_folder(tmp_path: Path) -> None:
    """Hidden files, a text at the top, a second name of one file."""
    folder = write_folder(tmp_path / "photos")
    os.link(in_order(folder / "train")[0], folder / "train" / "cat" / "photo 9.png")
    (folder / "train" / "cat" / ".thumbs").mkdir()
    shutil.copy(in_order(folder / "train")[1], folder / "train" / "cat" / ".thumbs" / "1.png")
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    (folder / "README.txt").write_text("")
    (folder / ".DS_Store").write_text("")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(folder, "photos")
    ours, theirs = DATASETS["image-tar"](root=str(tmp_path / "a.tar")), image_folder(root=str(folder))
    assert ours.info == theirs.info and ours.info.class_names == CLASSES
    assert all(torch.equal(a, b) for a, b in zip(everything(ours), everything(theirs), strict=True))


def test_odd_folders_in_a_tree(tmp_path: Path) -> None:
    """An image above the classes, folders that are called like images, a class without test images, links upwards."""
    folder = write_folder(tmp_path / "photos")
    wanted = image_folder(root=str(folder)).train.digest()
    write(folder / "preview.png", encoded(random_image(0)))
    for name in ("@eaDir/1.jpg", "clip.gif"):
        (folder / "train" / "cat" / name).mkdir(parents=True)
    (folder / "test" / "cow").mkdir()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(folder, "photos")
    for i in range(2):
        (folder / "train" / "cat" / f"link {i}").symlink_to("..")
    for dataset in (image_folder(root=str(folder)), DATASETS["image-tar"](root=str(tmp_path / "a.tar"))):
        assert dataset.train.digest() == wanted


def test_a_class_may_be_called_train_or_like_an_image(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", num_train=20) / "train"
    (folder / "cat").rename(folder / "train")
    (folder / "dog.b").rename(folder / "dog.gif")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(folder, "photos")
    for name, root in (("image-folder", folder), ("image-tar", tmp_path / "a.tar")):
        dataset = DATASETS[name](root=str(root), holdout=0.25)
        assert dataset.info.class_names == ("dog.gif", "train", CLASSES[2])
        assert dataset.train.size + dataset.test.size == 60
    (tmp_path / "flat" / "train").mkdir(parents=True)
    (tmp_path / "flat" / "test").mkdir()
    with pytest.raises(InputError, match="there are no images in"):  # these are no classes
        image_folder(root=str(tmp_path / "flat"), holdout=0.5)


def test_a_hidden_original_in_a_tar(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos")
    (folder / ".store").mkdir()
    first = in_order(folder / "train")[0]
    first.rename(folder / ".store" / "1")
    os.link(folder / ".store" / "1", first)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(folder, "photos")
        assert tar.getmember(f"photos/{first.relative_to(folder)}").islnk()
    ours, theirs = DATASETS["image-tar"](root=str(tmp_path / "a.tar")), image_folder(root=str(folder))
    assert all(torch.equal(a, b) for a, b in zip(everything(ours), everything(theirs), strict=True))


def test_a_link_to_a_folder_may_be_set_to_another(tmp_path: Path) -> None:
    """That differs in what its images hold alone."""
    one, other = write_folder(tmp_path / "one"), tmp_path / "other"
    for path in [one, *one.rglob("*")]:
        os.utime(path, (1e9, 1e9))
    shutil.copytree(one, other)
    changed = in_order(other / "train")[0]
    changed.write_bytes(encoded(random_image(999)))
    os.utime(changed, (1e9, 1e9))
    link = tmp_path / "current"
    for target in (one, other):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        pixels = [everything(image_folder(root=str(root)))[0] for root in (link, one, other)]
        assert torch.equal(pixels[0], pixels[1 if target == one else 2]) and not torch.equal(pixels[1], pixels[2])


def test_a_link_to_a_tar_may_be_set_to_another(tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / name) for name in "ab"]
    for path in in_order(folders[1]):
        path.write_bytes(encoded(random_image(len(path.name) + 500)))
    tars = [write_tar(folder, tmp_path / f"{folder.name}.tar") for folder in folders]
    for tar in tars:
        os.utime(tar, (1e9, 1e9))
    link = tmp_path / "current.tar"
    for tar in (*tars, *tars):
        link.unlink(missing_ok=True)
        link.symlink_to(tar)
        for root in (link, *tars):
            wanted = image_folder(root=str(folders[tars.index(tar if root == link else root)]))
            ours = DATASETS["image-tar"](root=str(root))
            assert all(torch.equal(a, b) for a, b in zip(everything(ours), everything(wanted), strict=True))


@pytest.mark.parametrize("kind", ["uint8", "int64", "string", "large_string", "dictionary"])
def test_labels_in_parquet(kind: str, tmp_path: Path) -> None:
    """Integer, string and dictionary-encoded columns can be the labels; other string columns are ignored."""
    texts = pyarrow.array(["cat", "dog"] * 20)
    labels = {"dictionary": texts.dictionary_encode(), "string": texts, "large_string": texts.cast("large_string")}
    chosen = labels[kind] if kind in labels else pyarrow.array([0, 1] * 20, kind)
    images = [encoded(random_image(i)) for i in range(40)]
    columns = {"image": images, "label": chosen, "filename": [f"{i}.png" for i in range(40)]}
    (tmp_path / "train.parquet").mkdir()  # as dask writes them
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "train.parquet" / "part.0.parquet")
    dataset = DATASETS["parquet"](root=str(tmp_path), holdout=0.3)
    assert dataset.info.class_names == (("0", "1") if "int" in kind else ("cat", "dog"))
    assert dataset.train.size + dataset.test.size == 40


def test_what_cannot_be_a_label_is_not_replaced_by_another_column(tmp_path: Path) -> None:
    columns = {"image": [b""] * 9, "label": [0.5] * 9, "filename": ["1.png"] * 9}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"has the columns image \(binary\), label \(double\), filename \(string\)"):
        DATASETS["parquet"](root=str(tmp_path), holdout=0.5)


def test_damaged_pages_of_parquet_are_one_message(tmp_path: Path) -> None:
    root = write_parquet(write_folder(tmp_path / "photos"), tmp_path / "hub")
    for path in root.rglob("*.parquet"):
        content = path.read_bytes()
        path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
    with pytest.raises(InputError, match=r"test-00000-of-00001\.parquet cannot be read as parquet"):
        DATASETS["parquet"](root=str(root))


def test_a_disk_that_fails_for_a_moment_makes_no_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, options = write_folder(tmp_path / "photos"), {"cache": str(tmp_path / "kept"), "on_error": "skip"}
    with monkeypatch.context() as patch:
        patch.setattr(Files, "content", lambda files, i: os.read(-1, i))  # EBADF
        with pytest.raises(InputError, match=r"cannot read .*photo.*: Bad file descriptor; run it again"):
            image_folder(root=str(folder), **options)
    assert image_folder(root=str(folder), **options).train.size == 24


def test_every_cut_of_a_tar_is_noticed(tmp_path: Path) -> None:
    content = write_tar(write_folder(tmp_path / "photos"), tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
    cuts = [member.offset + more for member in members[1::7] for more in (0, 100, 512, 700)]
    damaged = [content[:cut] for cut in cuts]
    damaged.append(content[: members[9].offset] + b"x" * 100 + content[members[9].offset + 100 :])
    for i, each in enumerate(damaged):
        root = write(tmp_path / f"{i}.tar", each)
        with pytest.raises(InputError, match=rf"{i}\.tar is (cut short, or is damaged at|not a tar, or is damaged)"):
            DATASETS["image-tar"](root=str(root))


def test_a_symbolic_link_in_a_tar_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos")
    (folder / "train" / "cat" / "link.png").symlink_to(in_order(folder / "train")[0])
    with pytest.raises(InputError, match=r"train/cat/link.png in .*a.tar is a symbolic link or a sparse file"):
        DATASETS["image-tar"](root=str(write_tar(folder, tmp_path / "a.tar")))
    (folder / "train" / "cat" / "link.png").unlink()
    (folder / "train" / "cow").symlink_to(folder / "train" / "cat")
    with pytest.raises(InputError, match=r"train/cow in .*a.tar is a symbolic link or a sparse file"):
        DATASETS["image-tar"](root=str(write_tar(folder, tmp_path / "a.tar")))


def test_a_file_may_be_replaced_while_the_process_lives(tmp_path: Path) -> None:
    first, second = write_folder(tmp_path / "one"), write_folder(tmp_path / "two")
    for path in in_order(second):
        path.write_bytes(encoded(random_image(len(path.name) + 500)))
    root, cache = tmp_path / "a.tar", str(tmp_path / "kept")
    for folder in (first, second, first):
        write_tar(folder, root)
        wanted = everything(image_folder(root=str(folder)))
        for options in ({}, {"cache": cache}):
            dataset = DATASETS["image-tar"](root=str(root), **options)
            assert all(torch.equal(a, b) for a, b in zip(everything(dataset), wanted, strict=True))


def test_a_file_that_was_replaced_before_it_is_opened_is_not_read(tmp_path: Path) -> None:
    """As by a worker process, which opens it later than the process that has listed it."""
    store = write(tmp_path / "store", b"0123456789")
    files = Files(Names(["a"]), np.zeros(1, np.int64), "", str(store), np.array([[2, 3]]), version_of(str(store)))
    other = write(tmp_path / "other", b"abcdefghij")
    os.utime(other, ns=(store.stat().st_mtime_ns,) * 2)
    other.replace(store)
    with pytest.raises(InputError, match="store has changed since the run began; start it again with --resume"):
        files.content(0)
    assert files._replace(version=version_of(str(store))).content(0) == b"cde"


def test_a_cache_may_be_larger_than_the_memory(tmp_path: Path) -> None:
    with (tmp_path / "pixels.bin").open("wb") as file:
        file.truncate(2**43)  # takes no space
    start = np.array([2**42])
    decoded = Decoded(str(file.name), start, np.array([[1, 1, 2]]), np.array([zlib.adler32(bytes(2))]))
    assert decoded.image(0).tolist() == [[[0, 0]]]


def test_a_full_dev_shm_costs_a_copy_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(size: int) -> None:
        raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", full)
    folder = write_folder(tmp_path / "photos", size=(150, 160))
    reader = image_folder(root=str(folder)).train.read.__self__
    index = np.arange(24)
    images = reader.read_elsewhere(index, index)
    assert images.nbytes > LARGE and np.array_equal(images, reader.read(*map(torch.from_numpy, (index, index))))


def test_each_machine_has_its_own_copy_of_what_parquet_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which is rank 1 on another machine than rank 0."""
    root = write_parquet(write_folder(tmp_path / "photos"), tmp_path / "hub")
    wanted = everything(image_folder(root=str(tmp_path / "photos")))
    of_rank_0 = list_parquet(root)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    received = [of_rank_0]
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    monkeypatch.setattr(distributed, "on_main", lambda call: received.pop() if received else call())
    monkeypatch.setattr(distributed, "once_a_node", lambda call: call())
    dataset = DATASETS["parquet"](root=str(root))
    assert all(torch.equal(a, b) for a, b in zip(everything(dataset), wanted, strict=True))


def test_where_there_is_no_home_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    folder = write_folder(tmp_path / "photos")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert image_folder(root=str(folder)).train.size == 24
    with pytest.raises(FileNotFoundError, match="there is no home folder; set XDG_CACHE_HOME"):
        DATASETS["parquet"](root=str(write_parquet(folder, tmp_path / "hub")))


def test_splits_of_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal names in both splits, a shard that comes later, and a split that is not used."""
    folder = write_folder(tmp_path / "photos", num_train=4)
    root = write_parquet(folder, tmp_path / "hub")
    wanted = everything(image_folder(root=str(folder)))
    for options in ({}, {"cache": str(tmp_path / "kept")}):
        dataset = DATASETS["parquet"](root=str(root), **options)
        assert all(torch.equal(a, b) for a, b in zip(everything(dataset), wanted, strict=True))
    for path in root.rglob("*.parquet"):
        os.utime(path, (1e9, 1e9))
    assert [DATASETS["parquet"](root=str(root)).train.size for _ in "12"] == [12, 12]
    train = root / "data" / "train-00000-of-00001.parquet"
    shutil.copy(train, root / "data" / "train-00001-of-00002.parquet")
    shutil.copy(train, root / "data" / "validation-00000-of-00001.parquet")
    os.utime(root / "data" / "train-00001-of-00002.parquet", (1e9, 1e9))
    capsys.readouterr()
    dataset = DATASETS["parquet"](root=str(root))
    assert (dataset.train.size, dataset.test.size) == (24, 12)
    assert "has the splits test, validation: test is held out, the rest not used" in capsys.readouterr().out
    with pytest.raises(InputError, match="has the splits test; wanted train and test, or one that is not split"):
        DATASETS["parquet"](root=str(root / "data" / "test-00000-of-00001.parquet"))


@pytest.mark.parametrize("label", ["cat", "cow"])
def test_a_listing_of_parquet_keeps_its_images(label: str, tmp_path: Path) -> None:
    """While another file comes and goes: too new for its listing to be kept, or of a class that training lacks."""
    images = [encoded(random_image(i)) for i in range(20)]
    os.utime(with_columns(tmp_path / "train.parquet", image=images, label=["cat"] * 20), (1e9, 1e9))
    before = everything(DATASETS["parquet"](root=str(tmp_path), holdout=0.3))
    with_columns(tmp_path / "test.parquet", image=[encoded(random_image(30, 40, 40))], label=[label])
    with pytest.raises(InputError, match="has a test split" if label == "cat" else "there are test images of cow"):
        DATASETS["parquet"](root=str(tmp_path), holdout=0.3)
    (tmp_path / "test.parquet").unlink()
    after = everything(DATASETS["parquet"](root=str(tmp_path), holdout=0.3))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_crop_needs_a_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"--data.crop is random, and --data.image-size is not set"):
        image_folder(root=str(write_folder(tmp_path / "photos")), crop="random")
    image_folder(root=str(tmp_path / "photos"), center=0.5)
    assert "--data.center 0.5 has no effect without --data.image-size: files keep" in capsys.readouterr().err
    image_folder(root=str(tmp_path / "photos"), smallest=0.5, image_size=8)
    assert "--data.smallest 0.5 has no effect without --data.crop random" in capsys.readouterr().err


def test_options_are_checked_in_calls_from_python_too(tmp_path: Path) -> None:
    root = str(write_folder(tmp_path / "photos"))
    for options in ({"crop": "Random"}, {"on_error": "Stop"}, {"channels": 2}, {"image_size": 0}):
        with pytest.raises(InputError, match=f"{next(iter(options))} is .*; it must be "):
            image_folder(root=root, **options)


def test_holding_out_none_or_all_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos") / "train"
    for share in (1e-9, 1 - 1e-9):
        with pytest.raises(InputError, match=r"of the 24 images in .*train holds (0|24) of them out; wanted some"):
            image_folder(root=str(folder), holdout=share)


def test_large_batches_come_through_shared_memory(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", size=(150, 160))
    plain, dataset = image_folder(root=str(folder)), image_folder(root=str(folder), workers=1)
    index = torch.arange(24)
    images = dataset.train.start(index, index)()
    assert images.nbytes > LARGE and torch.equal(images, plain.train.read(index, index))


def test_what_a_killed_process_left_in_the_cache_is_removed(tmp_path: Path) -> None:
    folder, cache = write_folder(tmp_path / "photos"), tmp_path / "kept"
    image_folder(root=str(folder), cache=str(cache))
    for made in [path for path in cache.glob("decoded-*") if path.is_dir()]:
        shutil.copytree(made, made.with_name(f"{made.name}-live"))  # of another machine that writes the same
        old = made.rename(made.with_name(f"{made.name}-x1y2"))
        for path in (*old.rglob("*"), old):
            os.utime(path, (1e9, 1e9))
    image_folder(root=str(folder), cache=str(cache))
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 4
    assert {path.name.rpartition("-")[2] for path in cache.glob("decoded-*-*")} == {"live"}


def test_a_cache_that_another_process_has_written_in_the_meantime_is_taken(tmp_path: Path) -> None:
    image = random_image(0)

    def parts(inner: bool):
        if inner:
            decoded_module.write_decoded(tmp_path / "decoded", parts(False))
        yield [image], {}

    decoded_module.write_decoded(tmp_path / "decoded", parts(True))
    assert [path.name for path in tmp_path.iterdir()] == ["decoded"]


def test_another_decoder_decodes_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = write_folder(tmp_path / "photos"), tmp_path / "kept"
    for versions, number in ((["11.3", None], 2), (["11.3", None], 2), (["11.4", None], 4)):
        monkeypatch.setattr(files_module, "decoder_versions", lambda versions=versions: versions)
        image_folder(root=str(folder), cache=str(cache))
        assert len([path for path in cache.iterdir() if path.is_dir()]) == number


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "photos")
    image_folder(root=str(folder))

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(decoded_module.zlib, "adler32", full)
    with pytest.raises(OSError, match="No space left") as error:
        image_folder(root=str(folder), cache=str(tmp_path / "kept"))
    assert str(error.value.filename).startswith(str(tmp_path / "kept" / "decoded-"))
    assert not [path for path in (tmp_path / "kept").iterdir() if path.is_dir()]


def test_a_file_that_becomes_readable_is_read_again(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos")
    before = stamp(in_order(folder)[0])
    in_order(folder)[0].chmod(0)
    assert stamp(in_order(folder)[0]) != before


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "testing"), ("train", "Testing")])
def test_splits_of_other_names_are_no_classes(names: tuple[str, str], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos")
    for old, new in zip(("train", "test"), names, strict=True):
        (folder / old).rename(folder / new)
    for options in ({}, {"holdout": 0.1}):
        with pytest.raises(InputError, match=f"has the folders {' and '.join(sorted(names))}; rename them to train"):
            image_folder(root=str(folder), **options)


def test_a_tree_without_train_is_not_split_at_random(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos")
    (folder / "train").rename(folder / "val")
    with pytest.raises(InputError, match="photos has the folders test and val; rename them to train and test"):
        image_folder(root=str(folder), holdout=0.1)


def test_splits_inside_of_classes_are_not_merged(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos")
    for name in CLASSES:
        for split in ("train", "test"):
            (tmp_path / "classes" / name).mkdir(parents=True, exist_ok=True)
            (folder / split / name).rename(tmp_path / "classes" / name / split)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "classes", ".")
    for name, root in (("image-folder", tmp_path / "classes"), ("image-tar", tmp_path / "a.tar")):
        with pytest.raises(InputError, match=r"has the folders test and train in cat, dog\.b, .*; wanted train/CLASS"):
            DATASETS[name](root=str(root), holdout=0.1)
    shutil.rmtree(tmp_path / "classes" / "cat" / "test")
    (tmp_path / "classes" / "cat" / "train").rename(tmp_path / "classes" / "cat" / "others")
    assert image_folder(root=str(tmp_path / "classes"), holdout=0.1).info.class_names == CLASSES


@pytest.mark.parametrize(("train", "test"), [("training", "testing"), ("Train", "Test"), ("train", "Testing")])
def test_splits_of_other_names_are_refused_in_parquet(train: str, test: str, tmp_path: Path) -> None:
    data = write_parquet(write_folder(tmp_path / "photos"), tmp_path / "hub") / "data"
    for old, new in (("train", train), ("test", test)):
        (data / f"{old}-00000-of-00001.parquet").rename(data / f"{new}-0.parquet")
    with pytest.raises(InputError, match=f"{test}-0.parquet is named after the split {test}; rename it to train"):
        DATASETS["parquet"](root=str(data.parent), holdout=0.1)


@pytest.mark.parametrize("with_val", [False, True])
def test_a_test_split_without_labels_is_not_taken(
    with_val: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "photos")
    (folder / "test").rename(folder / "val") if with_val else shutil.rmtree(folder / "test")
    (folder / "test").mkdir()
    write(folder / "test" / "1.png", encoded(random_image(0)))
    dataset = image_folder(root=str(folder), holdout=None if with_val else 0.2)
    assert dataset.train.size + dataset.test.size == (36 if with_val else 24)
    assert f"note: 1 files in {folder} are not images of a class: ignored" in capsys.readouterr().out


def test_labels_of_a_test_split_may_be_unknown_in_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_parquet(write_folder(tmp_path / "photos"), tmp_path / "hub")
    test = root / "data" / "test-00000-of-00001.parquet"
    shutil.copy(test, root / "data" / "validation-00000-of-00001.parquet")
    table = pyarrow.parquet.read_table(test)
    unknown = pyarrow.array([-1] * len(table), table["label"].type)
    pyarrow.parquet.write_table(table.set_column(table.schema.get_field_index("label"), "label", unknown), test)
    dataset = DATASETS["parquet"](root=str(root))
    assert dataset.test.size == 12 and dataset.test.labels.min() == 0
    assert f"note: {root} has no labels in test: not used" in capsys.readouterr().out


def test_parquet_behind_links_counts_and_hidden_files_do_not(tmp_path: Path) -> None:
    root = write_parquet(write_folder(tmp_path / "photos"), tmp_path / "hub")
    (root / "data").rename(tmp_path / "elsewhere")
    (root / "data").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(root)  # without end
    write(root / "data" / "._train-00000-of-00001.parquet", b"of macOS")
    assert DATASETS["parquet"](root=str(root)).train.size == 24


def test_a_damaged_file_of_parquet_is_named(tmp_path: Path) -> None:
    root = write_parquet(write_folder(tmp_path / "photos"), tmp_path / "hub")
    train = root / "data" / "train-00000-of-00001.parquet"
    write(root / "data" / "train-00001-of-00002.parquet", train.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"train-00001-of-00002\.parquet cannot be read as parquet"):
        DATASETS["parquet"](root=str(root))


def test_a_disk_that_is_mounted_later_is_listed(tmp_path: Path) -> None:
    """A link to it is listed as a file before."""
    folder, elsewhere = write_folder(tmp_path / "photos"), tmp_path / "disk"
    (folder / "train").rename(elsewhere)
    (folder / "train").symlink_to(elsewhere)
    elsewhere.rename(tmp_path / "unmounted")
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (1e9, 1e9), follow_symlinks=False)
    for _ in "12":  # listed, then remembered
        with pytest.raises(InputError, match="has no test split"):
            image_folder(root=str(folder))
    (tmp_path / "unmounted").rename(elsewhere)
    assert image_folder(root=str(folder)).train.size == 24


def test_which_table_of_a_folder_is_held_out_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "photos")
    for split in ("train", "test", "val"):
        files = in_order(folder / ("train" if split == "train" else "test"))
        lines = [f"{path.relative_to(folder)},{path.parent.name}" for path in files]
        (folder / f"{split}.csv").write_text("\n".join(["path,label", *lines]))
    DATASETS["image-list"](root=str(folder))
    assert "has the splits test, val: test is held out, the rest not used" in capsys.readouterr().out
