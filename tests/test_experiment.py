import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import backbones.experiment
import backbones.random as random
import backbones.tree as tree
from backbones.augment import repeated
from backbones.component import use
from backbones.data import Dataset, digits, in_memory
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.losses import balanced_class_weights, binary_cross_entropy
from backbones.models import Model, with_pretrained
from backbones.models.resnet import resnet18
from backbones.optim import adam, chain, lars, scale, sgd
from backbones.optim.schedule import Schedule, constant, cosine
from backbones.run.run import run
from backbones.torch_settings import set_arithmetic, torch_settings_kept
from backbones.types import CPU
from experiments import EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_come_back_from_json_equal(name: str) -> None:
    experiment = EXPERIMENTS[name]
    assert experiment.name == name
    assert Experiment.from_json(json.loads(json.dumps(experiment.to_json()))) == experiment


def test_an_experiment_of_before_an_option_has_its_default() -> None:
    experiment = EXPERIMENTS["digits-vit-tiny"]
    values = experiment.to_json()
    for name in ("loss", "class_weights", "sampling", "tta"):
        del values[name]
    assert Experiment.from_json(values) == experiment
    other = dataclasses.replace(experiment, loss=use(binary_cross_entropy))
    assert Experiment.from_json({**values, "loss": "binary-cross-entropy"}) == other  # before a loss had options


def test_the_reference_settings_of_cifar10() -> None:
    conv_net, vit = EXPERIMENTS["cifar10-resnet18"], EXPERIMENTS["cifar10-vit-tiny"]
    assert (conv_net.steps, conv_net.batch_size) == (64_000, 256) and (vit.steps, vit.batch_size) == (64_000, 512)
    assert conv_net.optim == use(sgd, lr=0.1, momentum=0.9, weight_decay=5e-4)
    assert vit.optim == use(adam, lr=1e-3, b1=0.9, b2=0.999, weight_decay=5e-5)
    for experiment in (conv_net, vit):
        assert experiment.schedule == use(cosine, warmup_steps=0, floor=0.01)  # 0.1 to 0.001, 1e-3 to 1e-5


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


def test_one_of_steps_and_epochs() -> None:
    for options in ({"steps": None}, {"epochs": 2.0}):
        with pytest.raises(InputError, match="give one of them"):
            dataclasses.replace(EXPERIMENTS["digits-vit-tiny"], **options)


def test_a_program_is_the_run(experiment: Experiment, tmp_path) -> None:
    """With dropout: what a notebook does ends in the parameters of the command line."""
    program = experiment.make()
    state = program.state
    for step in range(experiment.steps):
        state, _ = program.train_step(state, program.batches(step))
    result = run(experiment, run_dir=tmp_path)
    assert tree.sha256(state.params) == result["params_sha256"]
    assert program.evaluate(state)["loss"] == result["loss"]


def test_any_state_can_be_continued(experiment: Experiment) -> None:
    """The step's random numbers follow the state that it is given, not the calls before."""
    program = experiment.make()
    states = [program.state]
    for step in range(3):
        states.append(program.train_step(states[-1], program.batches(step))[0])
    again, _ = program.train_step(states[1], program.batches(1))
    assert tree.sha256(again) == tree.sha256(states[2])


class Small(nn.Module):
    """A module as people write them."""

    def __init__(self, num_classes: int = 10, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(images).mean(dim=(2, 3)))


def small(num_classes: int, *, width: int = 8) -> nn.Module:
    """A function that gives a module."""
    return Small(num_classes, width)


@pytest.mark.parametrize("function", [Small, small])
def test_a_module_is_a_model(function, experiment: Experiment, tmp_path) -> None:
    experiment = dataclasses.replace(experiment, model=use(function, width=4), steps=2)
    model = experiment.make_model(digits().info)
    assert isinstance(model, Model) and model.init(random.generator(0))[0]["head.weight"].shape == (10, 4)
    assert run(experiment, run_dir=tmp_path)["steps"] == 2


def ends_in_scale(*, factor: float = 0.1):
    """An optimizer without a learning rate."""
    return chain(scale(-factor))


def looks_around(schedule, *, lr: float = 0.1):
    """A transform that waits for values, and says what it sees."""

    def update(updates, state, params):
        print(f"norm {float(tree.global_norm(updates)):.3f}, bias {params['head.bias'].sum().item():.3f}")
        return tree.map(lambda g: -lr * g, updates), state

    return chain(scale(1.0), adam(schedule)._replace(init=lambda params: (), update=update))


def test_a_chain_may_end_in_scale(experiment: Experiment, tmp_path) -> None:
    experiment = dataclasses.replace(experiment, optim=use(ends_in_scale), schedule=use(constant), steps=2)
    assert run(experiment, run_dir=tmp_path)["steps"] == 2
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert "learning_rate" not in line and line["update_norm"] == pytest.approx(0.1 * line["grad_norm"], rel=1e-5)


def test_transforms_run_line_by_line_where_the_step_is_eager(experiment: Experiment, tmp_path, capsys) -> None:
    run(dataclasses.replace(experiment, optim=use(looks_around), compile="off", steps=3), run_dir=tmp_path)
    assert capsys.readouterr().out.count("norm ") == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float16"}, "--precision is 'float16'; it must be one of auto, float32, tf32, bfloat16"),
        ({"compile": "yes"}, "--compile is 'yes'; it must be one of auto, on, off, cudagraph"),
        ({"steps": 1.5}, r"--steps is 1\.5; it must be an integer, 1 or more"),
        ({"batch_size": "32"}, "--batch-size is '32'; it must be an integer, 1 or more"),
        ({"ema": 1.0}, r"--ema is 1\.0; it must be at least 0 and below 1"),
        ({"seed": -1}, "--seed is -1; it must be at least 0 and below 9223372036854775808"),
        ({"keep_every": 7}, "--keep-every is 7; it must be a multiple of --save-every, which is 6"),
        ({"loss": "hinge"}, r"loss is 'hinge'; wanted use\(function, option=value, \.\.\.\)"),
        ({"class_weights": "auto", "sampling": "balanced"}, "each make all classes count equally; give one"),
        ({"name": "a/b"}, "--name is 'a/b'; it must be the name of a folder"),
        ({"name": ""}, "--name is ''; it must be the name of a folder"),
    ],
    ids=str,
)
def test_values_that_an_experiment_cannot_have(experiment: Experiment, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(experiment, **options)


def test_classes_count_equally_by_draws_or_by_weights(experiment: Experiment, monkeypatch) -> None:
    program = dataclasses.replace(experiment, sampling="balanced", batch_size=40).make()
    assert program.batches(3).labels.bincount().tolist() == [4] * 10
    given, make_loss_fn = {}, backbones.experiment.make_loss_fn

    def make_recorded(model: Model, **options):
        given.update(options)
        return make_loss_fn(model, **options)

    monkeypatch.setattr(backbones.experiment, "make_loss_fn", make_recorded)
    dataclasses.replace(experiment, class_weights="auto", loss=use(binary_cross_entropy)).make()
    assert given["loss"].func is binary_cross_entropy
    assert torch.equal(given["class_weights"], balanced_class_weights(digits().train.labels, 10))


def test_weights_to_start_from_must_be_given(experiment: Experiment) -> None:
    experiment = dataclasses.replace(experiment, init_from="runs/x", steps=1)
    with pytest.raises(InputError, match=r"starts from runs/x: give `make` a model with these weights"):
        experiment.make()
    dataset = digits()
    model = experiment.make_model(dataset.info)
    params, model_state = model.init(random.generator(5))
    pretrained, _ = with_pretrained(model, {**params, **model_state}, dataset.info.image_shape)
    program = experiment.make(dataset, pretrained)
    assert tree.sha256(program.state.params) == tree.sha256(params)


def test_what_a_device_and_its_arithmetic_are_set_to(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr("backbones.machine.keep_memory", lambda: calls.append("memory"))
    monkeypatch.setattr("backbones.machine.set_num_threads", calls.append)
    monkeypatch.setattr(
        "backbones.experiment.set_arithmetic", lambda *, deterministic, tf32: calls.append((deterministic, tf32))
    )
    dataclasses.replace(experiment, threads=3).init_device()
    dataclasses.replace(experiment, keep_memory=False).init_device()
    assert calls == [3, "memory", (False, False), None, (False, False)]
    with pytest.raises(InputError, match="--precision tf32 is for GPUs, and this is a CPU; use float32 or bfloat16"):
        dataclasses.replace(experiment, precision="tf32").init_device()
    with pytest.raises(InputError, match="--compile cudagraph is for GPUs, and this is a CPU; use on or off"):
        dataclasses.replace(experiment, compile="cudagraph").init_device()
    calls.clear()
    monkeypatch.setattr("backbones.distributed.init", lambda device: torch.device("cuda"))
    for deterministic in (True, False):
        dataclasses.replace(experiment, deterministic=deterministic).init_device()
    dataclasses.replace(experiment, precision="tf32").init_device()
    assert calls == [(True, False), (False, False), (True, True)]
    for compile, modes in {"auto": "eager compile", "on": "compile compile", "off": "eager eager"}.items():
        changed = dataclasses.replace(experiment, compile=compile)
        assert [changed.mode(torch.device(device)) for device in ("cpu", "cuda")] == modes.split()


@pytest.mark.parametrize(("deterministic", "tf32"), [(True, False), (False, True)])
def test_the_arithmetic_of_torch_is_set_and_put_back(
    deterministic: bool, tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with torch_settings_kept():
        set_arithmetic(deterministic=deterministic, tf32=tf32)
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8" and not torch.are_deterministic_algorithms_enabled()
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_images_of_one_pixel_are_not_shifted(experiment: Experiment) -> None:
    split = torch.zeros(10, 3, 256, 1, dtype=torch.uint8), torch.arange(10)
    experiment = dataclasses.replace(experiment, model=use(CountsImages), tta="flip+shift")
    with pytest.raises(InputError, match=r"--tta flip\+shift is for 2x2 pixels or more, and images have 1x256; use"):
        experiment.make(in_memory(split, split, tuple("0123456789"), CPU))


def test_batches_of_evaluation_have_their_own_size(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, make_eval_step = [], backbones.experiment.make_eval_step

    def make_recorded(*args, **options):
        eval_step = make_eval_step(*args, **options)
        return lambda params, model_state, batch: (
            sizes.append(len(batch.images)) or eval_step(params, model_state, batch)
        )

    monkeypatch.setattr(backbones.experiment, "make_eval_step", make_recorded)
    program = dataclasses.replace(experiment, eval_batch_size=100).make()
    program.evaluate(program.state)
    assert sizes == [100] * 4  # 364 images


class CountsImages(nn.Module):
    """A linear layer after BatchNorm, which notes how many images of 16x16 it trains on at a time."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3 * 16 * 16, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            SIZES.add(len(images))
        return self.head(self.norm(images).flatten(1))


SIZES: set[int] = set()


def test_batch_norm_is_estimated_anew_in_the_micro_batches_of_training(experiment: Experiment) -> None:
    experiment = dataclasses.replace(experiment, model=use(CountsImages), ema=0.9, batch_size=32, accumulate=4)
    program = experiment.make()
    state, _ = program.train_step(program.state, program.batches(0))
    SIZES.clear()
    program.weights_of(state)
    assert {8} == SIZES


def test_a_model_that_does_not_give_logits_of_the_classes_is_refused(experiment: Experiment) -> None:
    """torchvision's constructors take `num_classes` by `**kwargs`, so that they do not get it."""
    with pytest.raises(InputError, match=r"--model resnet18 gives \(2, 1000\) for 2 images; wanted logits of shape"):
        dataclasses.replace(experiment, model=use(torchvision.models.resnet18)).make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tta": None}, "--tta is None; it must be one of none, flip, flip"),
        ({"tta": ("flip",)}, r"--tta is \('flip',\); it must be one of none"),
        ({"on_save_error": None}, "--on-save-error is None; it must be one of stop, continue"),
        ({"init_from": Path("runs/a")}, "init_from is .*Path.*; it must be a number, a string, a bool, None, or a"),
        ({"freeze": (torch.tensor(1),)}, "freeze is .*; it must be a number, a string"),
    ],
)
def test_values_that_act_as_others_or_cannot_be_stored(experiment: Experiment, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(experiment, **options)
    with pytest.raises(InputError, match=r"resnet18\.stem is None; it must be one of cifar, imagenet"):
        use(resnet18, stem=None)


def test_options_without_an_effect_are_told(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = dataclasses.replace(experiment, schedule=use(constant))
    dataclasses.replace(experiment, weight_decay_mask="matrices").make()
    assert capsys.readouterr().err == "warning: --weight-decay-mask has no effect: --optim.weight-decay is 0\n"
    dataclasses.replace(experiment, batch_size=1434).make()
    assert capsys.readouterr().err == "warning: a batch of 1434 has some of the 1433 training images twice\n"
    dataclasses.replace(experiment, data=use(even_and_odd), best="top5").make()
    assert capsys.readouterr().err == "warning: --best top5: it is always 100 % of 2 classes\n"
    dataclasses.replace(experiment, data=use(cropped), augment=use(repeated)).make()
    assert capsys.readouterr().err.startswith("warning: --augment repeated with --data.crop random gives all ")
    dataclasses.replace(experiment, rewind=3, nonfinite="skip", spike=None).make()
    assert capsys.readouterr().err.startswith("warning: --rewind has no effect with --nonfinite skip and --spike None")
    dataclasses.replace(experiment, pass_over=(2, 99)).make()
    assert capsys.readouterr().err == f"warning: --pass-over 99 has no effect: the run has {experiment.steps} steps\n"


def even_and_odd() -> Dataset:
    """Digits in two classes."""
    splits = [(source.read(torch.arange(100), torch.arange(100)), source.labels[:100] % 2) for source in digits()]
    return in_memory(*splits, ("even", "odd"), CPU)


def cropped(*, crop: str = "random") -> Dataset:
    """Digits, by a function with the option of image files."""
    return digits()


def test_parts_of_an_epoch_are_not_rounded_up_by_a_rounding_error(experiment: Experiment) -> None:
    labels = torch.zeros(50_000)
    dataset = SimpleNamespace(train=SimpleNamespace(size=len(labels)))
    for epochs, steps in ((1.1, 110), (3 * 0.1, 30), (1.1001, 111), (1e-9, 1)):
        assert dataclasses.replace(experiment, steps=None, epochs=epochs, batch_size=500).num_steps(dataset) == steps


def test_what_decays_is_all_or_matrices(experiment: Experiment) -> None:
    """Of LARS, whose own choice is matrices: without gradients, decay alone moves a leaf."""
    model = experiment.make_model(digits().info)
    params = tree.map(torch.ones_like, model.init(random.generator(0))[0])
    moved = {}
    for mask in ("all", "matrices", None):
        changed = dataclasses.replace(experiment, optim=use(lars), weight_decay_mask=mask, schedule=use(constant))
        optimizer = changed.make_optimizer(model.roles, 10)
        updates, _ = optimizer.update(tree.zeros_like(params), optimizer.init(params), params)
        moved[mask] = {name for name, leaf in updates.items() if leaf.any()}
    assert moved["all"] == params.keys() and moved[None] == moved["matrices"]
    assert moved["matrices"] == {name for name, role in model.roles.items() if role.kind == "matrix"}


def forgotten(num_classes: int) -> None:
    nn.Linear(3, num_classes)


def with_more(num_classes: int) -> tuple:
    return nn.Sequential(nn.Flatten(), nn.Linear(768, num_classes)), None


class NoModule:
    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes


class Misspelt(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.con1(images))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (forgotten, "--model forgotten gives a NoneType; wanted an nn.Module or a Model"),
        (with_more, "--model with-more gives a tuple; wanted an nn.Module or a Model"),
        (NoModule, "a NoModule is no model; wanted an nn.Module"),
        (Misspelt, r"has no attribute 'con1' \(.*test_experiment\.py, line \d+\)$"),
    ],
)
def test_what_is_no_model_says_why(model, message: str, experiment: Experiment) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(experiment, model=use(model)).make()


def without_return(*, num_steps: int = 0) -> None:
    del num_steps


def bare_pair(schedule: Schedule) -> tuple:
    transform = sgd(schedule, lr=0.1)
    return transform.init, transform.update


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": use(bare_pair)}, r"--optim bare-pair gives a tuple; wanted a GradientTransformation"),
        ({"schedule": use(without_return)}, "--schedule without-return gives a NoneType; wanted a Callable"),
        ({"augment": use(without_return)}, "--augment without-return gives a NoneType; wanted a Callable"),
        ({"data": use(without_return)}, "--data without-return gives a NoneType; wanted a Dataset"),
    ],
)
def test_what_is_no_component_says_why(options: dict, message: str, experiment: Experiment) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(experiment, **options).make()


def loss_by_names(logits, labels, *, targets, label_smoothing):
    return F.cross_entropy(logits, labels, reduction="none")


def test_parameters_of_a_loss_may_be_keyword_only(experiment: Experiment) -> None:
    program = dataclasses.replace(experiment, loss=use(loss_by_names)).make()
    _, metrics = program.train_step(program.state, program.batches(0))
    assert metrics["loss"] > 0 and program.evaluate(program.state)["loss"] > 0
