import dataclasses
import shutil
from collections import deque
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.states import flip_a_bit, make_state as make_any_state, zeros_like

import backbones.run.checkpoint.store as store
import backbones.tree as tree
from backbones import optim
from backbones.data import digits
from backbones.errors import InputError
from backbones.run.checkpoint import (
    Checkpoints,
    CorruptCheckpoint,
    SaveError,
    Which,
    best_step,
    find_checkpoint,
    list_steps,
    parse_saved,
    parse_which,
    read_manifest,
    read_manifests,
    run_of,
)
from backbones.run.start_weights import read_weights
from backbones.train_step import TrainState
from experiments.digits import digits_vit_tiny

make_state = partial(make_any_state, optimizer=optim.sgd(momentum=0.0))  # of few leaves: each is two files
EXPERIMENT = dataclasses.replace(digits_vit_tiny, keep=100)
INFO = digits().info


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def save_all(
    folder: Path, steps: range | list[int], *, top1: float | None = None, save_every: int = 1, **options: object
) -> TrainState:
    """Save states that differ, and return the last."""
    experiment = dataclasses.replace(EXPERIMENT, save_every=save_every, **options)
    checkpoints = Checkpoints(folder, experiment=experiment, info=INFO)
    for step in steps:
        state = make_state(step, step=step)
        checkpoints.save(state, {} if top1 is None else {"top1": top1})
    checkpoints.wait()
    checkpoints.close()
    return state


def restore(folder: Path, which: Which) -> TrainState:
    checkpoints = Checkpoints(folder, experiment=EXPERIMENT, info=INFO)
    try:
        return checkpoints.restore(zeros_like(make_state()), which)[0]
    finally:
        checkpoints.close()


def test_a_save_is_a_snapshot(folder: Path) -> None:
    state = make_state()
    checkpoints = Checkpoints(folder, experiment=EXPERIMENT, info=INFO)
    digest = tree.sha256(state)
    checkpoints.save(state, {"top1": 0.5})
    tree.map(torch.Tensor.zero_, state.params)  # as a training that continues while the snapshot is written
    checkpoints.close()
    assert tree.sha256(restore(folder, "latest")) == digest


@pytest.mark.parametrize(
    ("options", "kept"),
    [({"keep": 2}, [2, 6, 7]), ({"keep": 1, "keep_every": 3}, [2, 3, 6, 7]), ({"keep": 1, "best": "loss"}, [4, 7])],
    ids=str,
)
def test_keeps_the_latest_every_nth_and_the_best_also_after_a_restart(
    options: dict, kept: list[int], folder: Path
) -> None:
    values = [(0.1, 3.0), (0.9, 4.0), (0.2, 2.0), (0.3, 1.0), (0.3, 3.0), (0.4, 2.0), None]
    for step, metrics in enumerate(values, start=1):
        checkpoints = Checkpoints(
            folder, experiment=dataclasses.replace(EXPERIMENT, save_every=1, **options), info=INFO
        )
        metrics = {} if metrics is None else {"top1": metrics[0], "loss": metrics[1]}
        checkpoints.save(make_state(step=step), metrics)
        checkpoints.close()
    assert list_steps(folder) == kept
    assert best_step(read_manifests(folder)) == kept[0]


def test_the_best_is_kept_also_while_it_cannot_be_read(folder: Path) -> None:
    save_all(folder, [1, 2], keep=1, top1=0.9)
    flip_a_bit(folder / "2" / "manifest.json")
    save_all(folder, [3, 4], keep=1, top1=0.5)
    assert list_steps(folder) == [2, 4]
    with pytest.raises(CorruptCheckpoint, match=r"which checkpoint in .* is the best is not known, since 2 cannot be"):
        find_checkpoint(folder.parent, "best")


def test_a_stop_changes_nothing_of_where_a_run_goes_back_to(folder: Path) -> None:
    """The checkpoints of a stop, at steps 3 and 5, take no other's place, and training does not go back to them."""
    save_all(folder, [0, 2, 3], keep=2, save_every=2)
    assert list_steps(folder) == [0, 2, 3]
    save_all(folder, [4, 5], keep=2, save_every=2)
    assert list_steps(folder) == [2, 4, 5]
    experiment = dataclasses.replace(EXPERIMENT, keep=2, save_every=2)
    with closing(Checkpoints(folder, experiment=experiment, info=INFO)) as checkpoints:
        steps = {step: checkpoints.restore_before(zeros_like(make_state()), step)[1].step for step in (1, 3, 4, 6)}
    assert steps == {1: 2, 3: 2, 4: 4, 6: 4}


def test_the_run_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "checkpoints" / "superseded" / "8").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "8").mkdir()
    monkeypatch.chdir(tmp_path / "run" / "checkpoints")
    for path in ("8", "superseded/8", str(tmp_path / "run" / "checkpoints" / "8")):
        assert run_of(Path(path)) == tmp_path / "run"
    assert run_of(tmp_path / "copied" / "to" / "8") == tmp_path / "copied"
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "checkpoints").symlink_to(tmp_path / "run" / "checkpoints" / "superseded")
    assert run_of(tmp_path / "link" / "checkpoints" / "8") == tmp_path / "link"


def test_find_checkpoint(folder: Path) -> None:
    run_dir, checkpoints = folder.parent, Checkpoints(folder, experiment=EXPERIMENT, info=INFO)
    for step, top1 in ((3, 0.5), (20, 0.9), (100, 0.7)):
        checkpoints.save(make_state(step=step), {"top1": top1})
    checkpoints.close()
    names = {which: find_checkpoint(run_dir, parse_which(which)).name for which in ("latest", "best", "3", "020")}
    assert names == {"latest": "100", "best": "20", "3": "3", "020": "20"}
    assert parse_which("auto") == "auto" and parse_which("a/7") == Path("a/7")
    assert parse_which("~nobody-of-this-name/run") == Path("~nobody-of-this-name/run")  # there is no such home folder
    assert find_checkpoint(Path("elsewhere"), folder / "20").name == "20"
    assert find_checkpoint(folder / "3", "latest") == folder / "3" and find_checkpoint(folder) == folder / "100"
    with pytest.raises(InputError, match="3 is one checkpoint already; name its run folder to choose best of it"):
        find_checkpoint(folder / "3", "best")
    for wrong in ("auto", "besst", "runs/b/checkpoints/5"):
        with pytest.raises(InputError, match=f"--checkpoint is '{wrong}'; it must be latest, best or a step"):
            parse_saved(wrong)
    with pytest.raises(InputError, match=r"there is no checkpoint 4 in .*choose latest, best or a step: 3, 20, 100"):
        find_checkpoint(run_dir, 4)
    with pytest.raises(InputError, match=r"no checkpoint in .*elsewhere/checkpoints; name a run that has one"):
        find_checkpoint(run_dir / "elsewhere")
    (folder / "3" / "manifest.json").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"checkpoints/3.*manifest.json"):
        read_manifest(find_checkpoint(folder / "3"))


def go_on_from(folder: Path, step: int) -> None:
    assert restore(folder, step).step == step
    with closing(Checkpoints(folder, experiment=EXPERIMENT, info=INFO)) as checkpoints:
        checkpoints.supersede_after(step)


def test_later_checkpoints_are_superseded_not_lost(folder: Path) -> None:
    save_all(folder, [1, 2, 3])
    digests = [(folder / str(step) / "manifest.json").read_text() for step in (1, 2, 3)]
    go_on_from(folder, 1)
    assert list_steps(folder) == [1] and list_steps(folder / "superseded") == [2, 3]
    save_all(folder, [2])
    go_on_from(folder, 1)  # another 2 is in the way
    found = [next(folder.rglob(f"{step}/manifest.json")).read_text() for step in (1, 2, 3)]
    assert [a.partition('"files"')[0] for a in found] == [b.partition('"files"')[0] for b in digests]
    assert sorted(path.name for path in (folder / "superseded").iterdir()) == ["2", "2-2", "3"]


def test_later_checkpoints_are_superseded_from_the_last_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a process that is killed in between has not moved an earlier one, but left a later one."""
    save_all(folder, [1, 2, 3])
    moved: list[str] = []
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, other: moved.append(path.name) or rename(path, other))
    go_on_from(folder, 1)
    assert moved == ["3", "2"]


def test_corruption_is_reported_and_auto_takes_the_newest_intact_checkpoint(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_all(folder, [1, 2, 3])
    flip_a_bit(folder / "3" / "state" / "params" / "head.weight" / "0.0")
    (folder / "2" / "manifest.json").unlink()
    message = r"checkpoints/3 is corrupt: state/params/head\.weight/0\.0: .*; intact checkpoints: 1; use --resume"
    for which in ("latest", 3, folder / "3"):
        with pytest.raises(CorruptCheckpoint, match=message):
            restore(folder, which)
    assert capsys.readouterr().err == "" and list_steps(folder) == [1, 2, 3]
    assert tree.sha256(restore(folder, "auto")) == tree.sha256(make_state(1, step=1))
    warnings = capsys.readouterr().err.splitlines()
    assert [line.partition(" is corrupt")[0] for line in warnings] == [
        f"warning: the checkpoint {folder / str(step)}" for step in (3, 2)
    ]
    flip_a_bit(folder / "1" / "manifest.json")
    with pytest.raises(InputError, match=r"there is no intact checkpoint in "):
        restore(folder, "auto")
    assert list_steps(folder) == [1, 2, 3]


def test_temporary_folders_of_a_killed_process_are_deleted(folder: Path) -> None:
    save_all(folder, [1])
    (folder / "2.tmp" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    (folder / "0-deleted.tmp" / "state").mkdir(parents=True)
    assert list_steps(folder) == [1] and restore(folder, "latest").step == 1
    assert [path.name for path in folder.iterdir()] == ["1"]


def test_a_failed_save_raises_once_and_does_not_prevent_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(folder, experiment=EXPERIMENT, info=INFO)
    checkpoints.save(make_state(step=1), {})
    checkpoints.wait()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_checkpoint", fail)
        checkpoints.save(make_state(step=2), {})
        with pytest.raises(
            SaveError, match=r"could not save step 2 in .*No space left on device; earlier checkpoints are unchanged"
        ):
            checkpoints.wait()
        checkpoints.save(make_state(step=3), {})
        checkpoints._writer.submit(lambda: None).result(timeout=600)  # the one before is done
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


def test_what_the_loop_must_know_comes_back(folder: Path) -> None:
    checkpoints = Checkpoints(folder, experiment=EXPERIMENT, info=INFO)
    sums = {"count": 3, "sums": {"loss": 0.1 + 0.2}}
    checkpoints.save(make_state(), {}, since_log=sums, recent_losses=deque([0.1 + 0.2, 1 / 3]))
    saved = checkpoints.restore(zeros_like(make_state()))[1]
    assert saved.since_log == sums and saved.recent_losses == [0.1 + 0.2, 1 / 3]
    checkpoints.close()


def test_the_newest_intact_one_before_a_step(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_all(folder, [2, 4, 6, 8])
    flip_a_bit(folder / "4" / "manifest.json")
    shutil.copytree(folder, tmp_path / "copy" / "checkpoints")
    checkpoints = Checkpoints(folder, experiment=EXPERIMENT, info=INFO)
    assert checkpoints.restore_before(zeros_like(make_state()), 6)[1].step == 6
    assert list_steps(folder) == [2, 4, 6, 8]
    state, saved = checkpoints.restore_before(zeros_like(make_state()), 5)
    assert saved.step == 2 and tree.sha256(state) == tree.sha256(make_state(2, step=2))
    assert "the checkpoint" in capsys.readouterr().err
    other = Checkpoints(tmp_path / "copy" / "checkpoints", experiment=EXPERIMENT, info=INFO)
    assert other.restore_before(zeros_like(make_state()), 1)[1].step == 2  # there is none before it
    for each in (checkpoints, other):
        each.close()
