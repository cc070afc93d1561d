"""Every named experiment: frozen as JSON in golden/experiments.json, and run for two steps on images of its kind.

`python tests/test_experiments.py` freezes them anew, which is right only where a setting is meant to change.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import backbones.random as random
import backbones.tree as tree
from backbones.data import Dataset
from backbones.data.source import in_memory
from backbones.experiment import Experiment
from backbones.models import with_pretrained
from experiments import EXPERIMENTS

FILE = Path(__file__).parent / "golden" / "experiments.json"

IMAGES = {
    "digits": (1, 16, 10),
    "fashion-mnist": (1, 32, 10),
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
    "image-folder": (3, 64, 20),
    "few-digits": (3, 32, 10),
    "few-fashion-mnist": (1, 32, 10),
}
"""Data set -> channels, height and classes."""


def to_lines() -> str:
    """All experiments as one JSON object, one line each."""
    lines = [f"{json.dumps(name)}: {json.dumps(experiment.to_json())}" for name, experiment in EXPERIMENTS.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def test_every_experiment_is_as_it_was() -> None:
    frozen = {name: Experiment.from_json(values) for name, values in json.loads(FILE.read_text()).items()}
    assert frozen == EXPERIMENTS
    assert to_lines() == FILE.read_text()


def images_of(experiment: Experiment) -> Dataset:
    channels, size, num_classes = IMAGES[experiment.data.name]
    generator = random.generator(0)
    images = torch.randint(0, 256, (24, channels, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, num_classes, (24,), generator=generator)
    split = images, labels
    return in_memory(split, split, tuple(f"class {i}" for i in range(num_classes)), torch.device("cpu"))


def in_two_steps(name: str) -> Experiment:
    return dataclasses.replace(EXPERIMENTS[name], steps=2, epochs=None, batch_size=2, device="cpu")


def all_but_the_images(name: str) -> str:
    values = in_two_steps(name).to_json()
    for field in ("name", "data", "eval_every", "save_every", "keep_every"):
        del values[field]
    return json.dumps(values)


@pytest.mark.slow
@pytest.mark.parametrize("name", {all_but_the_images(name): name for name in EXPERIMENTS}.values())
def test_two_steps(name: str) -> None:
    experiment = in_two_steps(name)
    dataset = images_of(experiment)
    program = experiment.make(dataset, experiment.make_model(dataset.info))
    state = program.state
    for step in range(2):
        state, metrics = program.train_step(state, program.batches(step))
        assert metrics["loss"].isfinite() and metrics["nonfinite"] == 0
    before = tree.map(torch.clone, program.state.params)
    assert any(not torch.equal(leaf, before[key]) for key, leaf in state.params.items())


@pytest.mark.parametrize("name", [name for name, experiment in EXPERIMENTS.items() if experiment.init_from])
def test_a_tuned_one_starts_from_weights_of_the_experiment_that_it_names(name: str) -> None:
    tuned = EXPERIMENTS[name]
    source = EXPERIMENTS[tuned.init_from.removeprefix("runs/")]
    params, model_state = source.make_model(images_of(source).info).init(random.generator(7))
    info = images_of(tuned).info
    model, _ = with_pretrained(tuned.make_model(info), {**params, **model_state}, info.image_shape)
    fitted = model.init(random.generator(8))[0]
    same = {name for name, leaf in fitted.items() if leaf.shape == params[name].shape}
    assert {name for name in same if not torch.equal(fitted[name], params[name])} == set()
    assert len(same) > 0.9 * len(fitted)


if __name__ == "__main__":
    FILE.write_text(to_lines())
