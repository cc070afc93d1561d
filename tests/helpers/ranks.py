"""What each rank of several runs, in test_distributed, test_gradient, test_resume and test_rewind."""

import json
import os
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from helpers.poison import PASS_OVER, REWIND
from helpers.resumed import CASES, check_resumed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import backbones.distributed as distributed
import backbones.random as random
import backbones.tree as tree
from backbones.commands import train
from backbones.commands.audit import audit
from backbones.commands.exit import run_command
from backbones.experiment import Experiment
from backbones.gradient import GradAndValueResult, _LossModule, grad_and_value
from backbones.models import from_module, with_sync_batch_norm
from backbones.models.resnet import BasicBlock, resnet
from backbones.run.run import run as run_experiment
from backbones.train_step import make_loss_fn
from backbones.types import Batch, Metrics, ModelState, Params
from experiments import EXPERIMENTS


def seam() -> None:
    """`grad_and_value` over two ranks against the definition: each rank's own gradients, averaged by hand."""
    distributed.init("cpu")
    model = resnet(BasicBlock, (1, 1), (3, 8, 8), 10)
    params, model_state = model.init(random.generator(0))
    loss_fn = make_loss_fn(model, label_smoothing=0.0)
    by_ddp = grad_and_value(loss_fn, params)
    by_hand = torch.func.grad_and_value(loss_fn, has_aux=True)

    for call in range(3):  # the later calls bring other leaves in other memory
        generator = random.generator(1, call, distributed.rank())
        micro_batches = [random_batch(4, generator) for _ in range(call + 1)]
        own, expected_state = [], model_state
        for batch in micro_batches:
            grads, (loss, (expected_state, metrics)) = by_hand(params, expected_state, batch)
            own.append((grads, loss, metrics))
        expected = tree.map(lambda *leaves: sum(leaves) / len(leaves), *own)
        for leaf in (*tree.leaves(expected), *(s for s in expected_state.values() if s.is_floating_point())):
            dist.all_reduce(leaf)
            leaf /= 2

        before = tree.sha256((params, model_state))
        grads, (loss, (new_state, metrics)) = without_noise(by_ddp(params, model_state, micro_batches))
        kept = tree.sha256(grads)
        by_ddp(tree.zeros_like(params), model_state, micro_batches)
        assert tree.sha256(grads) == kept  # the next call writes over nothing
        assert tree.sha256((params, model_state)) == before
        for got, wanted in zip(tree.leaves((grads, loss, metrics)), tree.leaves(expected), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
        for got, wanted in zip(new_state.values(), expected_state.values(), strict=True):
            assert got.dtype == wanted.dtype
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
        before = tree.sha256(grads)
        by_ddp(tree.map(lambda p, g: p + g, params, grads), model_state, micro_batches)
        assert tree.sha256(grads) == before  # a second gradient does not overwrite the first
        params = tree.map(lambda p, g: p - 0.1 * g, params, grads)
        model_state = new_state

    assert distributed.sum_over_ranks(torch.tensor([1.0, distributed.rank()])).tolist() == [2.0, 1.0]
    buffers_with_a_graph()
    sync_batch_norm()
    print("all equal")


def buffers_with_a_graph() -> None:
    """A module may write a function of its parameters into a buffer, and use it in the next micro-batch and step."""

    def loss_fn(params: Params, model_state: ModelState, batch: Batch) -> tuple[Tensor, tuple[ModelState, Metrics]]:
        center = 0.9 * model_state["center"] + params["weight"] * batch.images.mean()
        return (params["weight"] * center).sum(), ({"center": center}, {"accuracy": center.sum()})

    params = {"weight": torch.ones(3)}
    by_ddp, model_state = grad_and_value(loss_fn, params), {"center": torch.zeros(3)}
    for call in range(2):
        batches = [random_batch(4, random.generator(4, call, i, distributed.rank())) for i in range(2)]
        _, (_, (model_state, metrics)) = by_ddp(params, model_state, batches)
        assert not any(leaf.requires_grad for leaf in tree.leaves((model_state, metrics)))


def without_noise(result: GradAndValueResult) -> GradAndValueResult:
    """The result without the estimates for the gradient noise scale; see `noise`."""
    grads, (loss, (model_state, metrics)) = result
    return grads, (loss, (model_state, {"accuracy": metrics["accuracy"]}))


def noise() -> None:
    """Three ranks against three micro-batches of one process and against the paper, and the gradient against DDP's own.

    A rank's share is one part of the batch, however many micro-batches it is cut into.
    """
    distributed.init("cpu")
    equal = torch.tensor([12582914 / 2**23])  # three times it is not a float32
    assert torch.equal(distributed.mean_over_ranks(equal), equal)
    model, rank = resnet(BasicBlock, (1, 1), (3, 8, 8), 10), distributed.rank()
    params, model_state = model.init(random.generator(0))
    loss_fn = make_loss_fn(model, label_smoothing=0.0)
    over_ranks = grad_and_value(loss_fn, params)
    plain = DistributedDataParallel(_LossModule(loss_fn, params), find_unused_parameters=True)
    with mock.patch("backbones.distributed.world_size", return_value=1):
        by_micro_batches = grad_and_value(loss_fn, params)
    shares = [random_batch(4, random.generator(2, other)) for other in range(3)]

    grads, (_, (_, metrics)) = over_ranks(params, model_state, [shares[rank]])
    check_noise(metrics, by_micro_batches(params, model_state, shares)[1][1][1])
    plain(model_state, shares[rank])[0].backward()
    for name, leaf in zip(params, plain.module.leaves, strict=True):
        assert torch.equal(grads[name], leaf.grad), name

    halves = [[Batch(*(x if x is None else x.chunk(2)[i] for x in share)) for i in range(2)] for share in shares]
    _, (_, (_, metrics)) = over_ranks(params, model_state, halves[rank])
    own = [by_micro_batches(params, model_state, each)[0] for each in halves]
    small = sum(tree.global_norm(each).square() for each in own) / 3
    big = tree.global_norm(tree.map(lambda *leaves: sum(leaves) / 3, *own)).square()
    variance = (small - big) / (1 / 4 - 1 / 12)
    check_noise(metrics, {"grad_sq_norm": (12 * big - 4 * small) / (12 - 4), "grad_variance": variance})
    print("all equal")


def check_noise(got: Metrics, wanted: Metrics) -> None:
    """Close up to the rounding of squares, of which these are differences."""
    for name in ("grad_sq_norm", "grad_variance"):
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-4 * wanted["grad_variance"].item())


def random_batch(size: int, generator: torch.Generator) -> Batch:
    images = torch.randn(size, 3, 8, 8, generator=generator)
    labels = torch.randint(10, (size,), generator=generator)
    return Batch(
        images, labels, targets=None, weight=torch.ones(size), index=torch.arange(size), epoch=torch.zeros(size)
    )


def sync_batch_norm() -> None:
    """Half a batch on each rank against the whole batch in one process, at a mean that is large for BatchNorm."""
    model = resnet(BasicBlock, (1, 1), (3, 8, 8), 10)
    params, model_state = model.init(random.generator(0))
    whole = random_batch(8, random.generator(1))
    whole = whole._replace(images=whole.images + 3 * (torch.arange(8)[:, None, None, None] > 3))
    half = Batch(*(leaf if leaf is None else leaf.chunk(2)[distributed.rank()] for leaf in whole))
    loss_fn, synced = (make_loss_fn(each, label_smoothing=0.0) for each in (model, with_sync_batch_norm(model)))
    expected = torch.func.grad_and_value(loss_fn, has_aux=True)(params, model_state, whole)
    got = without_noise(grad_and_value(synced, params)(params, model_state, [half]))
    for one, other in zip(tree.leaves(got), tree.leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    if distributed.is_main():  # ranks may evaluate unequal numbers of batches, so none waits for another
        norm = with_sync_batch_norm(from_module(partial(nn.BatchNorm2d, 3, track_running_stats=False)))
        norm.apply(*norm.init(random.generator(0)), whole.images, train=False)


def elsewhere(*args: str) -> None:
    """train.py, each rank in a working directory of its own, named by its number."""
    os.chdir(os.environ["RANK"])
    run_command(lambda _: train.main([*args], EXPERIMENTS))


def run(folder: str, resume: str, *configs: str) -> None:
    """Train one after the other, each in a folder named by its position, and write the result of this rank.

    What is compiled is traced only: inductor gets such graphs in one process too, in test_resume and test_models.
    """
    for position, config in enumerate(configs):
        run_dir = Path(folder) / str(position)
        experiment = Experiment.from_json(json.loads(config))
        with (
            mock.patch("torch.compile", partial(torch.compile, backend="aot_eager")),
            # so small that Dynamo cuts the compiled loss at DDP's buckets, as it does for large models
            mock.patch("torch.distributed._DEFAULT_FIRST_BUCKET_BYTES", 100_000),
            mock.patch("torch._dynamo.backends.distributed.pretty_print_buckets", print_number),
        ):
            result = run_experiment(experiment, run_dir=run_dir, resume=None if resume == "no" else resume)
        (run_dir / f"result-{distributed.rank()}.json").write_text(json.dumps(result))


def print_number(buckets: list, cap: int) -> None:
    print(f"{len(buckets)} buckets")


def resume(folder: str, steps: str, *names: str) -> None:
    """See `resumed.py`."""
    distributed.join()
    for name in names or CASES:
        check_resumed(CASES[name], Path(folder) / name, [int(step) for step in steps.split(",")])
    print("all equal")


def rewind(folder: str) -> None:
    """A run that goes back, one that passes over the same steps from the start, and an audit of the first."""
    back, straight = (
        run_experiment(experiment, run_dir=Path(folder) / name)
        for name, experiment in (("back", REWIND), ("straight", PASS_OVER))
    )
    assert back["params_sha256"] == straight["params_sha256"]
    assert audit(Path(folder) / "back", "20:60")
    print("all equal")


if __name__ == "__main__":
    tests = {"seam": seam, "noise": noise, "train": run, "resume": resume, "elsewhere": elsewhere, "rewind": rewind}
    tests[sys.argv[1]](*sys.argv[2:])
    distributed.shut_down()
    names = [(thread / "comm").read_text() for thread in Path("/proc/self/task").glob("*")]
    # torch keeps the graph of a compiled all-reduce, and with it the group
    assert not any("gloo" in name for name in names) or sys.argv[2].endswith("compiled"), names
