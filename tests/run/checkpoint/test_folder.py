import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.states import CORRUPTIONS, make_state, zeros_like

import backbones.tree as tree
from backbones import optim
from backbones.data import DataInfo
from backbones.errors import InputError
from backbones.run.checkpoint import (
    CorruptCheckpoint,
    load_arrays,
    read_checkpoint,
    read_manifest,
    saved_weights,
    to_arrays,
)
from backbones.run.checkpoint.folder import Manifest, delete_checkpoint, write_checkpoint
from backbones.train_step import TrainState
from backbones.types import Weights

INFO = DataInfo((3, 16, 16), tuple("0123456789"), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


def write(path: Path, state: TrainState, weights: Weights | None = None, **metrics: float) -> None:
    since_log = {"count": 1, "sums": {"loss": 0.1}}
    write_checkpoint(path, to_arrays(state, weights), Manifest(7, metrics, {"name": "x"}, INFO, since_log))


def test_a_checkpoint_is_restored_completely(tmp_path: Path) -> None:
    state = make_state()
    write(tmp_path / "7", state, top1=0.5)
    checkpoint = read_checkpoint(tmp_path / "7")
    assert tree.sha256(load_arrays(zeros_like(state), checkpoint.arrays)) == tree.sha256(state)
    manifest = checkpoint.manifest
    assert (manifest.step, manifest.metrics, manifest.experiment) == (7, {"top1": 0.5}, {"name": "x"})
    assert (manifest.info, manifest.since_log) == (INFO, {"count": 1, "sums": {"loss": 0.1}})
    assert manifest == read_manifest(tmp_path / "7") and list(manifest.leaves) == list(tree.named_leaves(state))
    assert [path.name for path in tmp_path.iterdir()] == ["7"]


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    write(tmp_path / "7", make_state())
    *before, last = synced
    inside = [path.relative_to(tmp_path / "7") for path in (tmp_path / "7").rglob("*")]
    assert {*before} >= {str(tmp_path / "7.tmp" / name) for name in (".", *inside)} and last == str(tmp_path)


@pytest.mark.slow
def test_any_corruption_of_any_file_is_found_and_the_file_is_named(tmp_path: Path) -> None:
    """`manifest.json` holds the hashes of all other files, and its own."""
    state = make_state()._replace(params={"weight": torch.randn(3, 2), "bias": torch.randn(3)}, opt_state=())
    write(tmp_path / "good", state)
    names = [file.relative_to(tmp_path / "good") for file in (tmp_path / "good").rglob("*") if file.is_file()]
    assert len(names) > 2 * len(tree.leaves(state))
    for name in names:
        for corrupt in CORRUPTIONS:
            shutil.copytree(tmp_path / "good", tmp_path / "bad", dirs_exist_ok=True)
            corrupt(tmp_path / "bad" / name)
            with pytest.raises(CorruptCheckpoint) as error:
                read_checkpoint(tmp_path / "bad")
            assert f"the checkpoint {tmp_path / 'bad'} is corrupt: {name}: " in str(error.value)
    shutil.copytree(tmp_path / "good", tmp_path / "bad", dirs_exist_ok=True)
    read_checkpoint(tmp_path / "bad")


def test_values_that_were_not_saved_are_found(tmp_path: Path) -> None:
    """Even if every file matches the manifest: the leaves have hashes too."""
    write(tmp_path / "7", make_state())
    path = tmp_path / "7" / "manifest.json"
    document = json.loads(path.read_text())
    document["manifest"]["leaves"]["params/head.bias"]["sha256"] = "0" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptCheckpoint, match=r"manifest\.json: its hash does not match"):
        read_checkpoint(tmp_path / "7")
    from backbones.run.checkpoint import folder

    document["sha256"] = folder._sha256_of_json(document["manifest"])
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptCheckpoint, match=r"state/params/head\.bias: its values are not those that were saved"):
        read_checkpoint(tmp_path / "7")


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    write(tmp_path / "7", make_state())
    before = read_checkpoint(tmp_path / "7").manifest
    with pytest.raises(OSError):
        write(tmp_path / "7", make_state(1))  # the name is taken
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        write(tmp_path / "file" / "8", make_state())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["7", "file"]
    assert read_checkpoint(tmp_path / "7").manifest == before
    delete_checkpoint(tmp_path / "7")
    delete_checkpoint(tmp_path / "7")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


AVERAGES = {
    "ema": optim.chain(optim.adam(), optim.ema_params(0.9)),
    "swa": optim.chain(optim.sgd(), optim.swa(start=2)),
    "schedule-free": optim.schedule_free_adamw(),
    "none": optim.adam(),
}


@pytest.mark.parametrize("name", list(AVERAGES))
def test_the_exported_weights_are_the_evaluated_ones(name: str, tmp_path: Path) -> None:
    optimizer = AVERAGES[name]
    state = make_state(optimizer=optimizer)
    params, opt_state = state.params, state.opt_state
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        grads = tree.map(lambda p, generator=generator: torch.randn(p.shape, generator=generator), params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optim.apply_updates(params, updates)
    state = state._replace(params=params, opt_state=opt_state)
    expected = optim.evaluation_params(opt_state, params)
    assert (tree.sha256(expected) == tree.sha256(params)) == (name == "none")
    statistics = {**state.model_state, "flag": torch.tensor(False)}  # those of the average
    write(tmp_path / "7", state, None if name == "none" else (expected, statistics))
    checkpoint = read_checkpoint(tmp_path / "7")
    wanted = (params, state.model_state) if name == "none" else (expected, statistics)
    assert tree.sha256(saved_weights(checkpoint.arrays)) == tree.sha256(wanted)
    assert tree.sha256(load_arrays(zeros_like(state), checkpoint.arrays)) == tree.sha256(state)


def test_a_checkpoint_of_version_0_1_gets_one_line(tmp_path: Path) -> None:
    write(tmp_path / "7", make_state())
    path = tmp_path / "7" / "manifest.json"
    document = json.loads(path.read_text())
    del document["manifest"]["version"], document["manifest"]["info"]
    document["sha256"] = hashlib.sha256(json.dumps(document["manifest"], sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"the checkpoint .*/7 was written by version 0\.1, and this is 0\.2"):
        read_checkpoint(tmp_path / "7")


def test_orbax_alone_reads_it_in_five_lines(tmp_path: Path) -> None:
    """In another process, without this library."""
    state = make_state()
    write(tmp_path / "7", state)
    script = f"""
import numpy as np
import orbax.checkpoint as ocp
state = ocp.PyTreeCheckpointer().restore("{tmp_path}/7/state")
np.savez("{tmp_path}/read.npz", **{{name: leaf for name, leaf in state.items() if leaf.dtype != "bfloat16"}})
print(state["model_state/half"].dtype, state["model_state/half"].tolist())
""".strip()
    assert len(script.splitlines()) == 5
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"bfloat16 {state.model_state['half'].tolist()}"
    arrays = dict(np.load(tmp_path / "read.npz"))
    wanted = {name: array for name, array in to_arrays(state).items() if array.dtype != "bfloat16"}
    assert arrays.keys() == wanted.keys()
    for name, array in wanted.items():
        assert arrays[name].dtype == array.dtype and arrays[name].tobytes() == array.tobytes(), name
