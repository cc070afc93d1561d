from pathlib import Path

import pytest
import torch
from states import flip_a_bit, make_state, zeros_like

import backbones.checkpoint.store as store
import backbones.tree as tree
from backbones.checkpoint import Checkpoints, Damaged, SaveError, best_step, find_checkpoint, list_steps, read_weights
from backbones.errors import InputError
from backbones.train_step import TrainState


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def save_all(folder: Path, steps: range | list[int], **options: object) -> TrainState:
    """Save states that differ, and give back the last."""
    checkpoints = Checkpoints(folder, experiment={}, **{"keep": 100, **options})
    for step in steps:
        state = make_state(step, step=step)
        checkpoints.save(state, {})
    checkpoints.wait()
    checkpoints.close()
    return state


def restore(folder: Path, which: str) -> TrainState:
    checkpoints = Checkpoints(folder, experiment={}, keep=100)
    try:
        return checkpoints.restore(zeros_like(make_state()), which)
    finally:
        checkpoints.close()


def test_saving_is_from_a_snapshot(folder: Path) -> None:
    state = make_state()
    checkpoints = Checkpoints(folder, experiment={"name": "x"}, keep=2)
    digest = tree.sha256(state)
    checkpoints.save(state, {"top1": 0.5})
    tree.map(torch.Tensor.zero_, state.params)  # the step goes on while the disk is written
    checkpoints.close()
    assert tree.sha256(restore(folder, "latest")) == digest


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep": 2}, [2, 6, 7]),
        ({"keep": 1, "keep_every": 3}, [2, 3, 6, 7]),
        ({"keep": 1, "best": "loss"}, [4, 7]),
    ],
    ids=str,
)
def test_keeps_the_latest_every_so_many_and_the_best_also_after_a_restart(
    options: dict, kept: list[int], folder: Path
) -> None:
    options = dict(options)
    experiment = {"best": options.pop("best", "top1")}
    values = [(0.1, 3.0), (0.9, 4.0), (0.2, 2.0), (0.3, 1.0), (0.3, 3.0), (0.4, 2.0), None]
    for step, metrics in enumerate(values, start=1):
        checkpoints = Checkpoints(folder, experiment=experiment, **options)
        metrics = {} if metrics is None else {"top1": metrics[0], "loss": metrics[1]}
        checkpoints.save(make_state(step=step), metrics)
        checkpoints.close()
    assert list_steps(folder) == kept
    assert best_step(folder) == kept[0]


def test_which_one_is_meant(folder: Path) -> None:
    run_dir, checkpoints = folder.parent, Checkpoints(folder, experiment={}, keep=9)
    for step, top1 in ((3, 0.5), (20, 0.9), (100, 0.7)):
        checkpoints.save(make_state(step=step), {"top1": top1})
    checkpoints.close()
    names = {which: find_checkpoint(run_dir, which).name for which in ("latest", "best", "3", "020")}
    assert names == {"latest": "100", "best": "20", "3": "3", "020": "20"}
    assert find_checkpoint(folder / "3", "latest") == folder / "3"
    with pytest.raises(InputError, match=r"there is no checkpoint 4 in .*there are latest, best and 3, 20, 100"):
        find_checkpoint(run_dir, "4")
    with pytest.raises(InputError, match=r"no checkpoint in .*another --run-dir"):
        find_checkpoint(run_dir / "elsewhere")


def test_later_ones_are_set_aside_not_lost(folder: Path) -> None:
    save_all(folder, [1, 2, 3])
    digests = [(folder / str(step) / "manifest.json").read_text() for step in (1, 2, 3)]
    assert restore(folder, "1").step == 1
    assert list_steps(folder) == [1] and list_steps(folder / "set-aside") == [2, 3]
    save_all(folder, [2])
    assert restore(folder, "1").step == 1  # another 2 is in the way
    found = [next(folder.rglob(f"{step}/manifest.json")).read_text() for step in (1, 2, 3)]
    assert [a.partition('"files"')[0] for a in found] == [b.partition('"files"')[0] for b in digests]


def test_damage_is_reported_and_auto_goes_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_all(folder, [1, 2, 3])
    flip_a_bit(folder / "3" / "state" / "params" / "head.weight" / "0.0")
    (folder / "2" / "manifest.json").unlink()
    message = r"checkpoints/3 is damaged: state/params/head\.weight/0\.0: .*; whole are those of the steps 1: --resume"
    for which in ("latest", "3", str(folder / "3")):
        with pytest.raises(Damaged, match=message):
            restore(folder, which)
    assert capsys.readouterr().err == "" and list_steps(folder) == [1, 2, 3]
    assert tree.sha256(restore(folder, "auto")) == tree.sha256(make_state(1, step=1))
    warnings = capsys.readouterr().err.splitlines()
    assert [line.partition(" is damaged")[0] for line in warnings] == [
        f"warning: the checkpoint {folder / str(step)}" for step in (3, 2)
    ]
    assert list_steps(folder) == [1]
    flip_a_bit(folder / "1" / "manifest.json")
    with pytest.raises(InputError, match=r"there is no checkpoint in .* that is whole"):
        restore(folder, "auto")


def test_what_a_killed_process_left_is_cleaned(folder: Path) -> None:
    save_all(folder, [1])
    (folder / "2.tmp" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    (folder / "0-deleted.tmp" / "state").mkdir(parents=True)
    assert list_steps(folder) == [1] and restore(folder, "latest").step == 1
    assert [path.name for path in folder.iterdir()] == ["1"]


def test_a_failed_save_is_told_once_and_the_next_one_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(folder, experiment={}, keep=9)
    checkpoints.save(make_state(step=1), {})
    checkpoints.wait()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_checkpoint", fail)
        checkpoints.save(make_state(step=2), {})
        with pytest.raises(SaveError, match=r"could not save step 2 in .*No space left on device.*as they were: 1\. "):
            checkpoints.wait()
        checkpoints.save(make_state(step=3), {})
        checkpoints._writer.submit(lambda: None).result()
        assert checkpoints.failed
        with pytest.raises(SaveError, match="step 3"):
            checkpoints.save(make_state(step=4), {})
        assert not checkpoints.failed
    checkpoints.save(make_state(step=4), {})
    checkpoints.wait()
    checkpoints.close()
    assert list_steps(folder) == [1, 4]


def test_weights_to_start_from(folder: Path, tmp_path: Path) -> None:
    state = save_all(folder, [1, 2])
    for path in (tmp_path, folder / "2"):
        weights = read_weights(str(path))
        assert weights.keys() == state.params.keys() | state.model_state.keys()
        assert all(torch.equal(weights[name], leaf) for name, leaf in state.params.items())
