"""Every named experiment: frozen as JSON in golden/experiments.json, and run for two steps, on digits or on few images
in the format of its data set.

`python tests/test_experiments.py` freezes them anew, which is right only where a setting is meant to change.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from helpers.formats import write_cifar, write_fashion_mnist
from helpers.shallow import shallow
from helpers.trees import write_folder

import backbones.random as random
import backbones.tree as tree
from backbones.experiment import Experiment
from backbones.models import with_pretrained
from backbones.types import CPU
from experiments import EXPERIMENTS

FILE = Path(__file__).parent / "golden" / "experiments.json"


def to_lines() -> str:
    """All experiments as one JSON object, one line each."""
    lines = [f"{json.dumps(name)}: {json.dumps(experiment.to_json())}" for name, experiment in EXPERIMENTS.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def test_every_experiment_is_as_it_was() -> None:
    frozen = {name: Experiment.from_json(values) for name, values in json.loads(FILE.read_text()).items()}
    assert frozen == EXPERIMENTS
    assert to_lines() == FILE.read_text()


def with_small_data(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The experiment with digits as they are, or with few images in the format of its data set."""
    experiment = EXPERIMENTS[name]
    data = experiment.data
    if data.name.startswith("cifar"):
        write_cifar(root, data.name, monkeypatch)
    elif data.name.endswith("fashion-mnist"):
        write_fashion_mnist(root, "")
    elif data.name == "image-folder":
        data = data.replace(image_size=64)
        write_folder(root, size=(80, 90))
    options = {"root": str(root)} if "root" in data.values else {}
    return dataclasses.replace(experiment, data=data.replace(**options), device="cpu")


FIRST = {experiment.model: name for name, experiment in reversed(EXPERIMENTS.items())}
"""Model -> the first experiment that has it."""


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model is as large as it is in one of its experiments, and shallow in the others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    experiment = with_small_data(name, tmp_path / "data", monkeypatch)
    experiment = dataclasses.replace(experiment, steps=2, epochs=None, batch_size=2)
    dataset = experiment.data.make(device=CPU)
    info, options = dataset.info, experiment.model.options
    if FIRST[experiment.model] == name:
        model = experiment.make_model(info)
    else:
        model = shallow(experiment.model.name)(info.image_shape, info.num_classes, **options)
    program = experiment.make(dataset, model)
    state = program.state
    for step in range(2):
        state, metrics = program.train_step(state, program.batches(step))
        assert metrics["loss"].isfinite() and metrics["nonfinite"] == 0
    before = tree.map(torch.clone, program.state.params)
    assert any(not torch.equal(leaf, before[key]) for key, leaf in state.params.items())


@pytest.mark.parametrize("name", [name for name, experiment in EXPERIMENTS.items() if experiment.init_from])
def test_a_tuned_one_starts_from_weights_of_the_experiment_that_it_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source_name = EXPERIMENTS[name].init_from.removeprefix("runs/")
    source, tuned = (with_small_data(each, tmp_path / each, monkeypatch) for each in (source_name, name))
    params, model_state = source.make_model(source.data.make().info).init(random.generator(7))
    info = tuned.data.make().info
    model, _ = with_pretrained(tuned.make_model(info), {**params, **model_state}, info.image_shape)
    fitted = model.init(random.generator(8))[0]
    same = {name for name, leaf in fitted.items() if leaf.shape == params[name].shape}
    assert {name for name in same if not torch.equal(fitted[name], params[name])} == set()
    assert len(same) > 0.9 * len(fitted)


if __name__ == "__main__":
    FILE.write_text(to_lines())
