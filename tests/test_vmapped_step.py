import dataclasses

import pytest
import torch
from helpers.resumed import few_digits, small_resnet
from helpers.runs import flat, relative_error
from helpers.steps import images_in, make_program

import backbones.tree as tree
from backbones import optim
from backbones.augment import crop_flip, mixup, rand_augment
from backbones.component import use
from backbones.data import digits
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.losses import binary_cross_entropy
from backbones.models.airbench import airbench
from backbones.optim.schedule import cosine
from backbones.vmapped_step import check_vmappable, make_vmapped_step
from experiments.digits import digits_resnet18, digits_vit_tiny

RESNET = dataclasses.replace(
    digits_resnet18,
    model=use(small_resnet),
    schedule=use(cosine, warmup_steps=2),
    steps=20,
    batch_size=16,
    compile="off",
)
VIT = dataclasses.replace(
    digits_vit_tiny,
    model=digits_vit_tiny.model.replace(width=32, depth=1, heads=2, mlp_width=64, dropout=0.0),
    optim=use(optim.sam_sgd, lr=0.05),
    schedule=RESNET.schedule,
    steps=20,
    batch_size=16,
    compile="off",
)


def with_options(experiment: Experiment, **options: object) -> Experiment:
    return dataclasses.replace(experiment, optim=experiment.optim.replace(**options))


def distance(members: list[Experiment], *, dtype: torch.dtype, num_steps: int = 4) -> float:
    """The largest relative error of a vmapped member: of its params, its model state and its metrics, as vectors."""
    programs = [make_program(member, dtype) for member in members]
    with images_in(dtype):
        vmapped = make_vmapped_step(members, digits())
    states = [program.state for program in programs]
    stacked = tree.stack(states)
    for step in range(num_steps):
        batches = [program.batches(step) for program in programs]
        stacked, metrics = vmapped(stacked, tree.stack(batches))
        alone = [program.train_step(*args) for program, *args in zip(programs, states, batches, strict=True)]
        states = [state for state, _ in alone]
    together = zip(tree.unstack(stacked), tree.unstack(metrics), strict=True)
    errors = [
        relative_error(flat(part(*ours)), flat(part(*theirs)))
        for ours, theirs in zip(together, alone, strict=True)
        for part in (lambda state, _: state.params, lambda state, _: state[:4], lambda _, metrics: metrics)
    ]
    return torch.tensor(errors).max().item()  # unlike max() it is NaN if one of them is


MUON = dataclasses.replace(
    RESNET, augment=use(crop_flip, padding=2), optim=use(optim.muon, lr=0.02, bfloat16=False), batch_size=32
)


def test_members_are_their_separate_runs_with_augmentation_batch_norm_and_muon() -> None:
    members = [
        dataclasses.replace(with_options(MUON, lr=lr, weight_decay=decay, momentum=momentum), seed=seed)
        for lr, decay, momentum, seed in ((0.02, 0.01, 0.95, 0), (0.01, 0.0, 0.9, 1), (0.005, 0.1, 0.95, 2))
    ]
    assert distance(members, dtype=torch.float32) < 1e-4


CASES = {
    "sam": VIT,
    "averaged": dataclasses.replace(RESNET, clip=1.0, ema=0.9, accumulate=2, augment=use(mixup, padding=1)),
    "muon": dataclasses.replace(MUON, batch_size=16),
    "soap": dataclasses.replace(VIT, optim=use(optim.soap, lr=1e-3), loss=use(binary_cross_entropy)),
    "adafactor": dataclasses.replace(VIT, optim=use(optim.adafactor, lr=1e-3), class_weights="auto"),
    "airbench": dataclasses.replace(
        VIT, model=use(airbench), augment=use(rand_augment), optim=use(optim.lamb, lr=1e-3), nonfinite="skip"
    ),
    "schedule-free": dataclasses.replace(RESNET, optim=use(optim.schedule_free_adamw, lr=1e-3), sampling="balanced"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_in_float64_they_are_closer(name: str) -> None:
    lr = CASES[name].optim.values["lr"]
    members = [dataclasses.replace(with_options(CASES[name], lr=lr / (1 + seed)), seed=seed) for seed in range(2)]
    # the orthogonal iteration of SOAP multiplies rounding errors by a thousand in each of its first steps
    assert distance(members, dtype=torch.float64, num_steps=2 if name == "soap" else 3) < 1e-7


def test_members_may_differ_in_every_number_of_the_optimizer() -> None:
    base = dataclasses.replace(VIT, optim=use(optim.adamw), clip=1.0, ema=0.5)
    members = [
        base,
        with_options(base, lr=3e-3, b1=0.8, eps=1e-6),
        with_options(base, weight_decay=0.0, b2=0.9),
        dataclasses.replace(base, clip=0.5, ema=0.0),
    ]
    assert distance(members, dtype=torch.float64) < 1e-7


def test_a_step_that_is_not_finite_is_skipped_by_its_member_alone() -> None:
    members = [with_options(dataclasses.replace(VIT, nonfinite="skip"), lr=lr) for lr in (0.05, 1e39)]
    programs = [member.make() for member in members]
    stacked, metrics = tree.stack([program.state for program in programs]), {}
    vmapped = make_vmapped_step(members, digits())
    for step in range(2):
        stacked, metrics = vmapped(stacked, tree.stack([program.batches(step) for program in programs]))
    good, bad = tree.unstack(stacked)
    assert metrics["nonfinite"].tolist() == [0, 1] and good.step == bad.step == 2
    assert not torch.equal(good.params["head.weight"], programs[0].state.params["head.weight"])
    assert tree.sha256(bad.params) == tree.sha256(programs[1].state.params)


def test_dropout_differs_from_member_to_member_and_is_repeated_with_the_step() -> None:
    experiment = dataclasses.replace(VIT, model=VIT.model.replace(dropout=0.5), precision="bfloat16")
    program, vmapped = experiment.make(), make_vmapped_step([experiment] * 2, digits())
    states, batches = tree.stack([program.state] * 2), tree.stack([program.batches(0)] * 2)
    _, metrics = vmapped(states, batches)
    torch.rand(7)
    _, again = vmapped(states, batches)
    assert torch.equal(metrics["loss"], again["loss"]) and metrics["loss"][0] != metrics["loss"][1]


def hidden_rate(schedule: optim.Schedule, *, lr: float = 0.1) -> optim.GradientTransformation:
    """A learning rate that is in the state, and is used beside it too."""
    return optim.chain(optim.stateless_with_tree_map(lambda g, p: lr * g), optim.scale_by_learning_rate(lr, schedule))


@pytest.mark.parametrize(
    ("one", "other", "option"),
    [
        (VIT, dataclasses.replace(VIT, model=VIT.model.replace(width=64)), "model"),
        (VIT, dataclasses.replace(VIT, label_smoothing=0.1), "label_smoothing"),
        (VIT, dataclasses.replace(VIT, schedule=use(cosine)), "schedule"),
        (VIT, dataclasses.replace(VIT, optim=use(optim.sgd, lr=0.05)), "optim"),
        (RESNET, with_options(RESNET, nesterov=True), "optim.nesterov"),
        (RESNET, dataclasses.replace(RESNET, clip=1.0), "clip"),
        (
            dataclasses.replace(VIT, optim=use(hidden_rate)),
            dataclasses.replace(VIT, optim=use(hidden_rate, lr=0.2)),
            "optim.lr",
        ),
    ],
)
def test_members_that_differ_in_what_is_not_in_the_state_are_refused(
    one: Experiment, other: Experiment, option: str
) -> None:
    message = rf"differ in {option}, which the state of a training does not hold"
    with pytest.raises(InputError, match=message):
        check_vmappable([one, dataclasses.replace(one, seed=1), other], few_digits())


def test_a_pure_step_is_that_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backbones.distributed.world_size", lambda: 2)
    with pytest.raises(InputError, match="start it without torchrun"):
        VIT.make_pure_step(few_digits())


def test_steps_that_are_compiled_or_go_back_are_refused() -> None:
    with pytest.raises(InputError, match="--compile is on; set --compile off"):
        check_vmappable([dataclasses.replace(VIT, compile="on")], few_digits())
    with pytest.raises(InputError, match="--rewind would go back with one"):
        check_vmappable([dataclasses.replace(VIT, rewind=3)], few_digits())


def through_numpy(*, padding: int = 1):
    """An augmentation that leaves torch."""

    def augment(keys, batch):
        del keys
        return batch._replace(images=torch.from_numpy(batch.images.numpy().copy()))

    return augment


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_step_that_leaves_torch_does_not_vmap() -> None:
    members = [dataclasses.replace(VIT, augment=use(through_numpy), seed=seed) for seed in (0, 1)]
    step = make_vmapped_step(members, digits())
    programs = [member.make() for member in members]
    states = tree.stack([program.state for program in programs])
    with pytest.raises(InputError, match="this step does not vmap"):
        step(states, tree.stack([program.batches(0) for program in programs]))
