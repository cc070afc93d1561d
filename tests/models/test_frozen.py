"""What is frozen stays as it is, to the last bit; the rest learns as torch.optim would have it learn."""

import dataclasses

import pytest
import torch
from torch import nn

import backbones.random as random
import backbones.tree as tree
from backbones import optim
from backbones.component import use
from backbones.data import digits
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.models import MODELS, freeze, from_module, relative_rates, select
from backbones.models.airbench import airbench
from backbones.models.base import with_autocast
from backbones.models.resnet import resnet18
from backbones.models.vit import vit_tiny
from backbones.optim.schedule import constant, cosine

SHAPE = (1, 16, 16)
SMALL = {"width": 48, "depth": 3, "heads": 3, "mlp_width": 96, "patch_size": 4}


@pytest.fixture
def experiment() -> Experiment:
    return Experiment(
        name="test", data=use(digits), model=use(vit_tiny, **SMALL), optim=use(optim.sgd, lr=0.1), steps=3, batch_size=8
    )


def trained(experiment: Experiment) -> tuple[dict, dict, dict]:
    """The leaves before and after three steps, and those that are trained."""
    program = experiment.make()
    state = program.state
    before = {**state.params, **state.model_state}
    for step in range(3):
        state, metrics = program.train_step(state, program.batches(step))
    assert metrics["nonfinite"] == 0
    return before, {**state.params, **state.model_state}, state.params


class Tied(nn.Module):
    """One matrix under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(3, 4), nn.Linear(3, 4)
        self.up.weight = self.down.weight


def test_a_parameter_is_frozen_by_any_of_its_names() -> None:
    for name in ("down.weight", "up.weight"):
        params, model_state = freeze(from_module(Tied), {name}).init(random.generator(0))
        assert params.keys() == {"down.bias", "up.bias"} and model_state.keys() == {"down.weight"}


def test_what_patterns_mean() -> None:
    roles = MODELS["vit-tiny"](SHAPE, 10, **SMALL).roles
    everything = set(roles)
    assert select(roles, ["head"], "freeze") == {"head.weight", "head.bias"}
    assert select(roles, ["stem"], "freeze") == {"patch_embed.weight", "patch_embed.bias", "cls_token", "pos_embed"}
    blocks = {name for name in everything if name.startswith("blocks.")}
    assert select(roles, ["trunk"], "freeze") == blocks | {"norm.weight", "norm.bias"}
    assert select(roles, ["blocks"], "freeze") == blocks
    assert select(roles, ["blocks.1"], "freeze") == {name for name in blocks if name.startswith("blocks.1.")}
    assert select(roles, ["*.bias", "norm"], "freeze") == {n for n in everything if n.endswith(".bias")} | {
        "norm.weight"
    }
    assert select(roles, [], "freeze") == set()
    with pytest.raises(InputError, match=r"--freeze stagez means no parameter; give stem, trunk, head, or .*blocks"):
        select(roles, ["head", "stagez"], "freeze")


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"freeze": ("stem", "blocks.0")}, ("patch_embed", "cls_token", "pos_embed", "blocks.0.")),
        ({"train_only": ("head", "norm")}, ("patch_embed", "cls_token", "pos_embed", "blocks.")),
        ({"train_only": ("trunk",), "freeze": ("*.bias",)}, ("patch_embed", "cls_token", "pos_embed", "head")),
    ],
)
def test_only_what_is_not_frozen_changes(fields: dict, names: tuple[str, ...], experiment: Experiment) -> None:
    before, after, params = trained(dataclasses.replace(experiment, **fields))
    frozen = {name for name in before if name.startswith(names)}
    frozen |= {name for name in before if "*.bias" in fields.get("freeze", ()) and name.endswith(".bias")}
    assert params.keys() == before.keys() - frozen and frozen
    assert {name for name in before if not torch.equal(before[name], after[name])} == before.keys() - frozen


def test_the_others_learn_as_if_nothing_were_frozen(experiment: Experiment) -> None:
    """In the first step."""
    programs = [dataclasses.replace(experiment, **fields).make() for fields in ({}, {"train_only": ("head",)})]
    assert tree.sha256({**programs[0].state.params}) == tree.sha256(
        {**programs[1].state.params, **programs[1].state.model_state}
    )
    everything, head = (program.train_step(program.state, program.batches(0))[0].params for program in programs)
    assert head.keys() == {"head.weight", "head.bias"}
    for name, leaf in head.items():
        torch.testing.assert_close(leaf, everything[name])


def test_a_frozen_batch_norm_keeps_its_statistics_and_uses_them() -> None:
    model = MODELS["resnet18"](SHAPE, 10)
    frozen = freeze(model, select(model.roles, ["stem", "stages.0"], "freeze"))
    params, model_state = frozen.init(random.generator(0))
    images = torch.randn(4, *SHAPE)
    _, new = frozen.apply(params, model_state, images, train=True)
    changed = {name for name in new if not torch.equal(new[name], model_state[name])}
    assert changed == {
        name
        for name in new
        if (name.startswith(("stages.1", "stages.2", "stages.3")) and "running" in name)
        or (name.startswith(("stages.1", "stages.2", "stages.3")) and name.endswith("num_batches_tracked"))
    }
    assert all(new[name] is model_state[name] for name in new.keys() - changed)  # no copies of what stays
    stem = {name.removeprefix("stem."): leaf for name, leaf in new.items() if name.startswith("stem.")}
    expected = torch.func.functional_call(model.skeleton.get_submodule("stem"), stem, (images,))  # in evaluation mode
    merged = {**params, **new}
    features = frozen.features(merged, {}, images)
    torch.testing.assert_close(features["stem"], expected)


def test_a_norm_whose_weight_is_fixed_is_frozen_with_its_bias() -> None:
    norm = nn.BatchNorm2d(2)
    norm.weight.requires_grad_(False)
    layers = nn.Conv2d(1, 2, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10)
    model = freeze(from_module(lambda: nn.Sequential(*layers)), {"1.bias"})
    params, model_state = model.init(random.generator(0))
    _, new = model.apply(params, model_state, torch.randn(4, *SHAPE), train=True)
    assert tree.sha256(new) == tree.sha256(model_state)


def test_a_norm_without_parameters_goes_with_the_layer_before_it() -> None:
    layers = (
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2, affine=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 10),
    )
    for names, changes in (({"0.weight", "0.bias"}, False), ({"0.bias"}, True), ({"4.bias"}, True)):
        model = freeze(from_module(lambda: nn.Sequential(*layers)), names)
        params, model_state = model.init(random.generator(0))
        _, new = model.apply(params, model_state, torch.randn(4, *SHAPE), train=True)
        assert torch.equal(new["1.running_mean"], model_state["1.running_mean"]) != changes


def test_weights_that_images_decide_may_be_frozen() -> None:
    model = airbench((3, 32, 32), 10)
    frozen = freeze(model, select(model.roles, ["stem", "stages.1"], "freeze"))
    images = torch.randn(20, 3, 32, 32)
    assert model.init_from_images is not None and frozen.init_from_images is not None
    trees = frozen.init_from_images(*frozen.init(random.generator(0)), images)
    expected = model.init_from_images(*model.init(random.generator(0)), images)
    assert tree.sha256({**trees[0], **trees[1]}) == tree.sha256({**expected[0], **expected[1]})
    assert "whiten.bias" in trees[1] and "stages.1.conv1.weight" in trees[1]


def test_freezing_everything_is_refused(experiment: Experiment) -> None:
    for fields in ({"freeze": ("*",)}, {"train_only": ("head",), "freeze": ("head",)}):
        with pytest.raises(InputError, match="all parameters are frozen, and nothing is left to train"):
            dataclasses.replace(experiment, **fields).make()


def test_depths_and_rates() -> None:
    roles = vit_tiny(SHAPE, 10, **SMALL).roles
    depths = {"pos_embed": 0, "patch_embed.weight": 0, "blocks.0.attn.qkv.weight": 1, "blocks.2.mlp.fc1.bias": 3}
    depths |= {"norm.weight": 4, "head.bias": 4}
    assert {name: roles[name].depth for name in depths} == depths
    rates = relative_rates(roles, layer_decay=0.5, trunk_lr=0.1)
    assert rates["head.weight"] == 1 and rates["norm.weight"] == 0.1
    assert rates["blocks.2.norm1.weight"] == pytest.approx(0.05) and rates["cls_token"] == pytest.approx(0.1 / 16)
    roles = resnet18(SHAPE, 10).roles
    assert [roles[f"{name}.weight"].depth for name in ("stem.0", "stages.0.1.conv1", "stages.3.0.norm2", "head")] == [
        0,
        1,
        4,
        5,
    ]


def test_rates_are_relative_to_the_head_also_where_it_is_frozen(experiment: Experiment) -> None:
    """In the first step, after which the trunk is as if the head were trained."""
    experiment = dataclasses.replace(experiment, layer_decay=0.5)
    programs = [each.make() for each in (experiment, dataclasses.replace(experiment, freeze=("head", "norm")))]
    everything, trunk = (program.train_step(program.state, program.batches(0))[0].params for program in programs)
    assert everything.keys() - trunk.keys() == {"head.weight", "head.bias", "norm.weight", "norm.bias"}
    for name, leaf in trunk.items():
        torch.testing.assert_close(leaf, everything[name])


@pytest.mark.parametrize("name", ["sgd", "adamw", "schedule_free_adamw", "lion"])
def test_rates_by_layer_are_those_of_an_optimizer_for_each(name: str, experiment: Experiment) -> None:
    """torch.optim's parameter groups are the model of it; the oracle is our own optimizer with each of the rates."""
    optimizer = getattr(optim, name)
    experiment = dataclasses.replace(experiment, optim=use(optimizer), layer_decay=0.5, trunk_lr=0.5)
    model = experiment.make_model(digits().info)
    params, _ = model.init(random.generator(0))
    generator = random.generator(1)
    grads = [{name: torch.randn(leaf.shape, generator=generator) for name, leaf in params.items()} for _ in range(2)]
    rates = relative_rates(model.roles, layer_decay=0.5, trunk_lr=0.5)

    def updated(experiment: Experiment) -> dict[str, torch.Tensor]:
        transform, leaves = experiment.make_optimizer(model.roles, 10), params
        state = transform.init(leaves)
        for each in grads:
            updates, state = transform.update(each, state, leaves)
            leaves = optim.apply_updates(leaves, updates)
        assert optim.current_learning_rate(state) == pytest.approx(experiment.optim.values["lr"])
        return leaves

    together = updated(experiment)
    plain = dataclasses.replace(experiment, layer_decay=None, trunk_lr=None)
    for rate in sorted(set(rates.values()))[::2]:
        alone = updated(dataclasses.replace(plain, optim=use(optimizer, lr=rate * plain.optim.values["lr"])))
        for leaf in (leaf for leaf, each in rates.items() if each == rate):
            torch.testing.assert_close(together[leaf], alone[leaf])


def plain_sgd(lr: float = 0.1) -> optim.GradientTransformation:
    return optim.sgd(lambda step: torch.ones_like(step, dtype=torch.float64), lr=lr)


def test_an_optimizer_without_a_schedule_cannot_have_rates_by_layer(experiment: Experiment) -> None:
    experiment = dataclasses.replace(experiment, optim=use(plain_sgd), layer_decay=0.5)
    with pytest.raises(InputError, match="plain-sgd has no parameter `schedule`, which --layer-decay or --trunk-lr"):
        experiment.make()


def test_rates_that_are_all_the_same_are_told(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = dataclasses.replace(experiment, schedule=use(constant))
    for options in ({"trunk_lr": 1.0}, {"trunk_lr": 0.1}, {"layer_decay": 0.5}):
        dataclasses.replace(experiment, **options).make()
    assert not capsys.readouterr().err
    dataclasses.replace(experiment, layer_decay=0.5, freeze=("stem", "trunk")).make()
    assert capsys.readouterr().err == (
        "warning: --layer-decay and --trunk-lr give all parameters that are trained the same rate\n"
    )


def test_muon_without_hidden_matrices_is_told(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    muon = dataclasses.replace(experiment, optim=use(optim.muon), schedule=use(constant))
    muon.make()
    assert not capsys.readouterr().err
    dataclasses.replace(muon, train_only=("head",)).make()
    assert capsys.readouterr().err == "warning: --optim muon has no matrix between stem and head to train\n"


def test_unknown_names_are_refused() -> None:
    model = resnet18((3, 8, 8), 10)
    for names in (["head"], ["head.weight", "head.wieght"], "head.weight"):
        with pytest.raises(InputError, match="no such parameters; wanted full names, as `select` finds them"):
            freeze(model, names)


def test_an_average_of_rates_by_layer_is_that_of_each(experiment: Experiment) -> None:
    """With rates that are nearly equal it is nearly that of one optimizer."""
    plain = dataclasses.replace(experiment, optim=use(optim.schedule_free_adamw))
    evaluated = []
    for each in (plain, dataclasses.replace(plain, layer_decay=1 - 1e-9)):
        program = each.make()
        state = program.state
        for step in range(2):
            state, _ = program.train_step(state, program.batches(step))
        evaluated.append(program.weights_of(state)[0])
        assert all((evaluated[-1][name] != leaf).any() for name, leaf in state.params.items())
    assert evaluated[0].keys() == evaluated[1].keys()
    for name, leaf in evaluated[0].items():
        torch.testing.assert_close(evaluated[1][name], leaf)


def test_options_that_the_optimizer_does_not_take_are_refused(experiment: Experiment) -> None:
    for options, message in (
        ({"weight_decay_mask": "matrices"}, "no parameter `decays`, which --weight-decay-mask needs"),
        ({"schedule": use(cosine)}, "no parameter `schedule`, which --schedule cosine needs"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(experiment, **{"optim": use(plain_sgd), "schedule": use(constant), **options}).make()
    with pytest.raises(InputError, match="schedule-free-adamw evaluates an average of its own already; leave --ema"):
        dataclasses.replace(experiment, optim=use(optim.schedule_free_adamw), ema=0.9).make()


def test_sam_cannot_have_them(experiment: Experiment) -> None:
    with pytest.raises(InputError, match="so it does not go with --layer-decay"):
        trained(dataclasses.replace(experiment, optim=use(optim.sam_sgd), layer_decay=0.5))


def test_what_was_frozen_before_stays_frozen() -> None:
    model = MODELS["resnet18"](SHAPE, 10)
    stem, first = (select(model.roles, [part], "freeze") for part in ("stem", "stages.0"))
    twice, once = freeze(freeze(model, stem), first), freeze(model, stem | first)
    images = torch.randn(4, *SHAPE)
    (_, of_twice), (_, of_once) = (
        each.apply(*each.init(random.generator(0)), images, train=True) for each in (twice, once)
    )
    assert tree.sha256(of_twice) == tree.sha256(of_once)


def test_an_apply_of_its_own_is_kept() -> None:
    model = with_autocast(MODELS["resnet18"](SHAPE, 10), torch.bfloat16)
    head = freeze(model, select(model.roles, ["head"], "freeze"))
    logits, _ = head.apply(*head.init(random.generator(0)), torch.randn(4, *SHAPE), train=True)
    assert logits.dtype == torch.bfloat16
    with pytest.raises(InputError, match=r"cannot freeze the norm stem\.1 of a model with an `apply` of its own"):
        freeze(model, select(model.roles, ["stem"], "freeze"))


def test_a_norm_whose_weights_are_those_of_a_trained_one_is_not_frozen() -> None:
    def make() -> nn.Module:
        norms = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        norms[1].weight, norms[1].bias = norms[0].weight, norms[0].bias
        layers = nn.Conv2d(1, 2, 3), norms[0], nn.Conv2d(2, 2, 3), norms[1], nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(2, 10))

    model = freeze(from_module(make), {"0.weight", "0.bias"})
    params, model_state = model.init(random.generator(0))
    _, new = model.apply(params, model_state, torch.randn(4, *SHAPE), train=True)
    assert not torch.equal(new["1.running_mean"], model_state["1.running_mean"])
    assert not torch.equal(new["3.running_mean"], model_state["3.running_mean"])


def test_norms_without_statistics_may_be_frozen_in_any_model() -> None:
    model = with_autocast(MODELS["vit-tiny"](SHAPE, 10, **SMALL), torch.bfloat16)
    frozen = freeze(model, select(model.roles, ["blocks.0"], "freeze"))
    assert frozen.apply is model.apply
