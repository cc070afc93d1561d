"""What a GPU computes is what a CPU computes, and a run on it is repeated to the last bit: `pytest -m gpu`."""

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.batches import check_same, make_batch, make_keys
from helpers.descent import Descent
from helpers.resumed import LINEAR, RESNET, VIT, check_resumed
from helpers.runs import flat, relative_error
from helpers.shallow import images, shallow
from helpers.trees import write_folder
from torch import Tensor

import backbones.random as random
import backbones.tree as tree
from backbones import optim
from backbones.augment import AUGMENTS, crop_flip
from backbones.component import use
from backbones.data import digits, image_folder, make_batches
from backbones.experiment import Experiment
from backbones.jit import jit
from backbones.models import MODELS
from backbones.models.base import with_autocast
from backbones.models.mobilenet import mobilenet
from backbones.optim import OPTIMIZERS
from backbones.run.analysis.model_evaluation import load_predictor
from backbones.run.checkpoint import find_checkpoint, read_checkpoint
from backbones.run.run import run
from backbones.torch_settings import set_arithmetic, torch_settings_kept
from backbones.types import CPU
from backbones.vmapped_step import make_vmapped_step
from experiments.digits import digits_resnet18

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

CUDA = torch.device("cuda", 0)
MODES = ("off", "on", "cudagraph")

to_cuda = partial(tree.map, partial(Tensor.to, device=CUDA))
to_cpu = partial(tree.map, Tensor.cpu)


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32, as `Experiment.init_device` has them."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize(("tf32", "low", "high"), [(False, 0.0, 1e-5), (True, 1e-5, 1e-2)])
def test_products_in_tf32(tf32: bool, low: float, high: float) -> None:
    a, b = torch.randn(2, 512, 512, dtype=torch.float64)
    with torch_settings_kept():
        set_arithmetic(deterministic=False, tf32=tf32)
        product = (a.float().to(CUDA) @ b.float().to(CUDA)).cpu().double()
    assert low < relative_error(product, a @ b) < high


def test_keys_and_what_is_drawn_from_them_have_the_same_bits() -> None:
    keys = make_keys(10_000)
    for draw in (partial(random.fold_in, number=3), random.uniform, partial(random.randint, high=33)):
        assert torch.equal(draw(keys.to(CUDA)).cpu(), draw(keys))


@pytest.mark.parametrize("name", AUGMENTS)
def test_augmented_images_have_the_same_bits(name: str) -> None:
    batch, keys = make_batch(256, (3, 32, 32)), make_keys(256)
    wanted = use(AUGMENTS[name]).make(num_classes=10, device=CPU)(keys, batch)
    augment = use(AUGMENTS[name]).make(num_classes=10, device=CUDA)
    got = to_cpu(augment(keys.to(CUDA), to_cuda(batch)))
    if wanted.images.dtype == torch.uint8:
        check_same(got, wanted)
    else:  # images that are mixed
        for one, other in zip(tree.leaves(got), tree.leaves(wanted), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_models_and_logits_in_every_precision(name: str) -> None:
    model = shallow(name)((3, 32, 32), 10)
    trees = model.init(random.generator(0))

    def gradient(device: torch.device) -> Tensor:
        torch.manual_seed(0)
        params, model_state, batch = tree.map(lambda leaf: leaf.to(device, torch.float64), (*trees, images()))

        def loss_fn(params: tree.Tree) -> Tensor:
            logits, _ = model.apply(params, model_state, batch, train=True)
            return (logits * torch.arange(20.0, device=device).view(2, 10)).sum()

        return flat(torch.func.grad(loss_fn)(params))

    def logits(device: torch.device, dtype: torch.dtype, precision: torch.dtype = torch.float32) -> Tensor:
        params, model_state, batch = tree.map(lambda leaf: leaf.to(device, dtype), (*trees, images()))
        return flat(with_autocast(model, precision).apply(params, model_state, batch, train=False)[0])

    assert relative_error(gradient(CUDA), gradient(CPU)) < 1e-9
    exact = logits(CPU, torch.float64)
    assert relative_error(logits(CUDA, torch.float32), exact) < 1e-5
    assert 1e-4 < relative_error(logits(CUDA, torch.float32, torch.bfloat16), exact) < 0.1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_of_optimizers(name: str, descent: Descent) -> None:
    optimizer = OPTIMIZERS[name](**({"bfloat16": False} if name == "muon" else {}))
    found = []
    for place in (to_cpu, to_cuda):
        params = place(descent.params)
        opt_state, update = optimizer.init(params), optim.with_grad_fn(optimizer.update)
        # SOAP's orthogonal iteration multiplies rounding errors by a thousand in each of its first steps
        for grads in map(place, descent.grads[: 2 if name == "soap" else 5]):
            updates, opt_state = update(grads, opt_state, params, grad_fn=lambda params, grads=grads: grads)
            params = optim.apply_updates(params, updates)
        found.append(flat(tree.map(torch.sub, params, place(descent.params))))
    assert relative_error(*found) < 1e-6


@pytest.mark.parametrize("compile", MODES)
@pytest.mark.parametrize("experiment", [RESNET, VIT], ids=["resnet", "vit"])
def test_training_on_a_gpu_is_training(experiment: Experiment, compile: str) -> None:
    """The losses of 6 steps are those of a CPU, in float32."""
    model = experiment.model if experiment is RESNET else experiment.model.replace(dropout=0.0)
    experiment = dataclasses.replace(experiment, model=model, precision="float32")
    losses = []
    for device, mode in (("cpu", "off"), ("cuda", compile)):
        state, train_step, batches, evaluate, *_ = dataclasses.replace(experiment, device=device, compile=mode).make()
        found = []
        for step in range(6):
            state, metrics = train_step(state, batches(step))
            found.append(metrics["loss"].item())
        losses.append([*found, evaluate(state)["loss"]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


@pytest.mark.parametrize("compile", MODES)
@pytest.mark.parametrize(
    "experiment", [RESNET, VIT, dataclasses.replace(LINEAR, nonfinite="skip")], ids=["resnet", "vit", "linear"]
)
def test_a_resumed_run_is_the_run(experiment: Experiment, compile: str, tmp_path: Path) -> None:
    precision = "float32" if experiment is RESNET else "bfloat16"
    experiment = dataclasses.replace(experiment, device="cuda", compile=compile, precision=precision)
    check_resumed((experiment, "inductor"), tmp_path, [4])


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("compile", MODES)
def test_a_step_does_not_wait_for_the_gpu(compile: str) -> None:
    experiment = dataclasses.replace(VIT, device="cuda", compile=compile, augment=use(crop_flip, padding=2))
    state, train_step, batches, *_ = experiment.make()
    for step in range(6):
        try:
            if step == 3:  # compiled and warmed up
                torch.cuda.set_sync_debug_mode("error")
            state, _ = train_step(state, batches(step))
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_cuda_graph_keeps_the_state_in_place() -> None:
    def step(state: dict[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        state = {"a": state["a"] * 0.5 + x, "count": state["count"] + 1}
        return state, {"sum": state["a"].sum()}

    expected = {"a": torch.arange(6.0, device=CUDA), "count": torch.tensor(0, device=CUDA)}
    state = tree.map(torch.clone, expected)
    addresses = [leaf.data_ptr() for leaf in tree.leaves(state)]
    replay = jit(step, mode="cudagraph", donate=True)
    metrics = []
    for i in range(5):
        x = torch.full((), float(i), device=CUDA)
        state, got = replay(state, x)
        expected, wanted = step(expected, x)
        metrics.append((got["sum"], wanted["sum"]))
    assert [leaf.data_ptr() for leaf in tree.leaves(state)] == addresses
    torch.testing.assert_close(state, expected)
    assert all(torch.equal(got, wanted) for got, wanted in metrics)  # no later replay wrote over them


@pytest.mark.parametrize("experiment", [RESNET, VIT], ids=["resnet", "vit"])
def test_members_of_a_vmapped_step_are_their_separate_runs(experiment: Experiment) -> None:
    model = experiment.model if experiment is RESNET else experiment.model.replace(dropout=0.0)
    experiment = dataclasses.replace(experiment, model=model, optim=use(optim.muon, bfloat16=False))
    experiment = dataclasses.replace(experiment, device="cuda", compile="off", precision="float32", accumulate=1)
    members = [dataclasses.replace(experiment, seed=seed) for seed in range(3)]
    programs = [member.make() for member in members]
    vmapped = make_vmapped_step(members, digits(CUDA))
    states = [program.state for program in programs]
    stacked = tree.stack(states)
    for step in range(2):
        batches = [program.batches(step) for program in programs]
        stacked, _ = vmapped(stacked, tree.stack(batches))
        states = [program.train_step(*each)[0] for program, *each in zip(programs, states, batches, strict=True)]
    for got, wanted in zip(tree.unstack(stacked), states, strict=True):
        assert relative_error(flat(got.params), flat(wanted.params)) < 1e-3


def test_files_that_processes_read_ahead(tmp_path: Path) -> None:
    folder = str(write_folder(tmp_path))
    got, wanted = (
        make_batches(image_folder(device, root=folder).train, seed=0, batch_size=8, device=device)
        for device in (CUDA, CPU)
    )
    for step in (0, 1, 2, 5):
        check_same(to_cpu(got(step)), wanted(step))


def test_a_checkpoint_of_a_gpu_is_read_on_a_cpu(tmp_path: Path) -> None:
    result = run(dataclasses.replace(digits_resnet18, device="cuda", steps=2, compile="off"), run_dir=tmp_path / "run")
    assert result["steps"] == 2
    checkpoint = read_checkpoint(find_checkpoint(tmp_path / "run"))
    shown = digits().test.read(torch.arange(64), torch.zeros(64, dtype=torch.int64))
    on_cpu, on_gpu = (
        load_predictor(checkpoint, dataclasses.replace(digits_resnet18, device=device.type), device)(shown.to(device))
        for device in (CPU, CUDA)
    )
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("compile", MODES)
def test_depthwise_convolutions_train(compile: str, experiment: Experiment, tmp_path: Path) -> None:
    experiment = dataclasses.replace(experiment, device="cuda", compile=compile, model=use(mobilenet))
    assert run(experiment, run_dir=tmp_path)["steps"] == 12
