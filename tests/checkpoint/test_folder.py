import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from states import DAMAGES, make_state, zeros_like

import backbones.tree as tree
from backbones import optim
from backbones.checkpoint import Damaged, fill, read_checkpoint, read_manifest, to_arrays
from backbones.checkpoint.folder import delete_checkpoint, write_checkpoint
from backbones.checkpoint.weights import describe_average, weights_of
from backbones.train_step import TrainState


def write(path: Path, state: TrainState, **metrics: float) -> None:
    write_checkpoint(path, to_arrays(state), metrics=metrics, experiment={"name": "x"}, average=describe_average(state))


def test_all_comes_back(tmp_path: Path) -> None:
    state = make_state()
    write(tmp_path / "7", state, top1=0.5)
    checkpoint = read_checkpoint(tmp_path / "7")
    assert tree.sha256(fill(zeros_like(state), checkpoint.arrays)) == tree.sha256(state)
    manifest = checkpoint.manifest
    assert (manifest.step, manifest.metrics, manifest.experiment) == (7, {"top1": 0.5}, {"name": "x"})
    assert manifest == read_manifest(tmp_path / "7") and list(manifest.leaves) == list(tree.named_leaves(state))
    assert [path.name for path in tmp_path.iterdir()] == ["7"]


def test_any_damage_to_any_file_is_found_and_the_file_is_named(tmp_path: Path) -> None:
    """By its name in the folder; `manifest.json` holds the hashes of all others, and its own."""
    optimizer = optim.sgd(momentum=0.0)
    write(tmp_path / "good", make_state(optimizer=optimizer))
    names = [file.relative_to(tmp_path / "good") for file in (tmp_path / "good").rglob("*") if file.is_file()]
    assert len(names) > 2 * len(tree.leaves(make_state(optimizer=optimizer)))
    for name in names:
        for damage in DAMAGES:
            shutil.copytree(tmp_path / "good", tmp_path / "bad", dirs_exist_ok=True)
            damage(tmp_path / "bad" / name)
            with pytest.raises(Damaged) as error:
                read_checkpoint(tmp_path / "bad")
            assert f"the checkpoint {tmp_path / 'bad'} is damaged: {name}: " in str(error.value)
    shutil.copytree(tmp_path / "good", tmp_path / "bad", dirs_exist_ok=True)
    read_checkpoint(tmp_path / "bad")


def test_other_values_than_were_saved_are_found(tmp_path: Path) -> None:
    """Though every file is as the manifest says: the leaves have hashes too."""
    write(tmp_path / "7", make_state())
    path = tmp_path / "7" / "manifest.json"
    document = json.loads(path.read_text())
    document["manifest"]["leaves"]["params/head.bias"]["sha256"] = "0" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(Damaged, match=r"manifest\.json: its hash is another"):
        read_checkpoint(tmp_path / "7")
    from backbones.checkpoint import folder

    document["sha256"] = folder._sha256_of_json(document["manifest"])
    path.write_text(json.dumps(document))
    with pytest.raises(Damaged, match=r"state/params/head\.bias: its values are not those that were saved"):
        read_checkpoint(tmp_path / "7")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
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
def test_the_weights_are_those_that_are_evaluated(name: str, tmp_path: Path) -> None:
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
    write(tmp_path / "7", state)
    weights = weights_of(read_checkpoint(tmp_path / "7"))
    assert tree.sha256(weights) == tree.sha256({**expected, **state.model_state})


def test_orbax_alone_reads_it_in_five_lines(tmp_path: Path) -> None:
    """In another process, which knows nothing of us."""
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
