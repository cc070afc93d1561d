import dataclasses

import pytest

from backbones.component import use
from backbones.compose import on, shorter, with_ema
from backbones.data import cifar100, digits, fashion_mnist
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.models.resnet import resnet18
from backbones.optim import sgd
from backbones.optim.schedule import cosine
from experiments.digits import digits_vit_tiny
from experiments.reference import cifar10_resnet18


def test_on_other_data() -> None:
    changed = on(cifar10_resnet18, fashion_mnist, root="elsewhere")
    assert changed.name == "fashion-mnist-resnet18"
    assert changed.data == use(fashion_mnist, root="elsewhere")
    assert (changed.model, changed.optim, changed.steps) == (cifar10_resnet18.model, cifar10_resnet18.optim, 64_000)
    assert on(changed, cifar100).name == "cifar100-resnet18"
    with pytest.raises(InputError, match="unknown option of digits 'root'"):
        on(cifar10_resnet18, digits, root="elsewhere")


def test_on_other_data_under_a_name_of_ones_own() -> None:
    mine = Experiment(name="mine", data=use(digits), model=use(resnet18), optim=use(sgd), steps=1, batch_size=1)
    assert on(mine, cifar100).name == "cifar100-mine"


def test_shorter_takes_the_same_course() -> None:
    changed = shorter(digits_vit_tiny, 0.1)  # 1000 steps, of which 50 are a warm-up, evaluated every 200
    assert (changed.steps, changed.schedule.values["warmup_steps"]) == (100, 5)
    assert (changed.eval_every, changed.save_every, changed.keep_every) == (20, 20, None)
    assert changed.schedule == use(cosine, warmup_steps=5, floor=0.01) and changed.optim == digits_vit_tiny.optim
    assert shorter(changed, 10) == digits_vit_tiny


def test_shorter_in_epochs_and_with_checkpoints_that_are_kept() -> None:
    options = {"epochs": 10.0, "batch_size": 1, "save_every": 30, "keep_every": 90}
    mine = Experiment(name="mine", data=use(digits), model=use(resnet18), optim=use(sgd), **options)
    changed = shorter(mine, 0.05)
    assert (changed.epochs, changed.steps) == (0.5, None) and changed.schedule == mine.schedule
    assert (changed.save_every, changed.keep_every) == (2, 6)
    saved = shorter(dataclasses.replace(mine, eval_every=250, save_every=500, keep_every=1000), 0.01)
    assert (saved.eval_every, saved.save_every, saved.keep_every) == (2, 4, 8)  # what is saved is evaluated
    assert shorter(mine, 1e-6).save_every == 1
    with pytest.raises(InputError, match="factor is 0; it must be"):
        shorter(mine, 0)


def test_with_ema() -> None:
    assert with_ema(digits_vit_tiny, 0.9).ema == 0.9
    with pytest.raises(InputError, match=r"ema is 1\.5; it must be"):
        with_ema(digits_vit_tiny, 1.5)
