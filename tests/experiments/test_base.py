import dataclasses
import json

import pytest

from backbones.errors import InputError
from backbones.models import MODELS
from backbones.optim import OPTIMIZERS, SCHEDULES
from experiments import EXPERIMENTS, Experiment
from experiments.base import COMPONENTS, MODEL, OPTIM, SCHEDULE, make_component


def test_fields_are_the_keyword_only_parameters_with_their_defaults() -> None:
    assert dataclasses.asdict(MODEL["vit-small"]()) == {
        "patch_size": 4, "width": 384, "depth": 12, "heads": 6, "mlp_width": 1536, "dropout": 0.0,
    }  # fmt: skip
    assert dataclasses.asdict(MODEL["resnet50"](stem="imagenet")) == {"stem": "imagenet"}
    assert set(COMPONENTS["model"]) == set(MODELS) and set(COMPONENTS["optim"]) == set(OPTIMIZERS)
    assert set(COMPONENTS["schedule"]) == set(SCHEDULES)


def test_make_calls_the_function_with_the_fields() -> None:
    def function(a: int, *, b: int = 2, c: str = "x") -> tuple:
        """Doc.

        Args:
            a: given.
            b: chosen.
            c: chosen too.
        """
        return a, b, c

    made = make_component("some-name", function)(c="y")
    assert made.make(1) == (1, 2, "y")
    assert repr(made) == "some-name(b=2, c='y')"
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.b = 3


@pytest.mark.parametrize("kind", COMPONENTS)
def test_every_field_has_a_default_and_help(kind: str) -> None:
    for config in COMPONENTS[kind].values():
        for field in dataclasses.fields(config):
            assert field.default is not dataclasses.MISSING, field.name
            assert field.type.__metadata__[0].help, f"{config.__name__}.{field.name} has no Args: entry"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_come_back_from_json_equal(name: str) -> None:
    experiment = EXPERIMENTS[name]
    assert experiment.name == name
    assert Experiment.from_json(json.loads(json.dumps(experiment.to_json()))) == experiment


def test_tuples_come_back_from_json() -> None:
    schedule = SCHEDULE["multi-step"](milestones=(0.3, 0.6))
    experiment = dataclasses.replace(EXPERIMENTS["digits-resnet18"], schedule=schedule, optim=OPTIM["adamw"]())
    assert Experiment.from_json(json.loads(json.dumps(experiment.to_json()))) == experiment


def test_the_reference_settings_of_cifar10() -> None:
    conv_net, vit = EXPERIMENTS["cifar10-resnet18"], EXPERIMENTS["cifar10-vit-tiny"]
    assert (conv_net.steps, conv_net.batch_size) == (64_000, 256) and (vit.steps, vit.batch_size) == (64_000, 512)
    assert (conv_net.optim.lr, conv_net.optim.momentum, conv_net.optim.weight_decay) == (0.1, 0.9, 5e-4)
    assert (vit.optim.lr, vit.optim.b1, vit.optim.b2, vit.optim.weight_decay) == (1e-3, 0.9, 0.999, 5e-5)
    for experiment in (conv_net, vit):
        assert type(experiment.schedule).__name__ == "cosine"
        assert experiment.schedule == SCHEDULE["cosine"](warmup_steps=0, floor=0.01)  # 0.1 to 0.001, 1e-3 to 1e-5


OUT_OF_RANGE = {
    "eval_every": 0,
    "keep": 0,
    "steps": -1,
    "clip": -1.0,
    "ema": 1.0,
    "label_smoothing": 1.5,
    "seed": 2**63,
}


@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE.items())
def test_numbers_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"--{field.replace('_', '-')} is {value}; it must be"):
        dataclasses.replace(EXPERIMENTS["digits-vit-tiny"], **{field: value})
