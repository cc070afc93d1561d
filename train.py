"""Train an image backbone: `torchrun train.py --model vit-tiny --optim adam`.

`main` is the flow of data, top to bottom. It alone puts the parts together, and it alone compiles.
"""

import errno
import os
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

import backbones.distributed as distributed
import backbones.tree as tree
from backbones.checkpoint import Checkpoints, list_steps, read_weights
from backbones.command_line import quiet_when_unread
from backbones.data import Dataset, channel_statistics
from backbones.donate import donating
from backbones.errors import InputError
from backbones.files import to_json, write_whole
from backbones.interrupt import EXIT_CODE, Interrupted, catch_interrupts
from backbones.loop import Clock, Diverged, Evaluate, make_evaluate, make_statistics, train
from backbones.metric_writer import MetricWriter, plot_curves
from backbones.models import Model, in_precision, start_from
from backbones.optim import GradientTransformation, chain, clip_by_global_norm, ema_params, make_update
from backbones.overhead import Overhead, measure_overhead
from backbones.train_step import (
    TrainStep,
    init_train_state,
    make_eval_step,
    make_loss_fn,
    make_model_state_step,
    make_train_step,
)
from backbones.types import Params
from experiments import Experiment
from experiments.cli import parse
from experiments.provenance import compare_runs, device_name, read_starts, record_start
from experiments.run_dir import prepare_run_dir, write_experiment


def main(experiment: Experiment, *, run_dir: Path | None = None, resume: str | None = None) -> dict[str, Any]:
    """Run an experiment, or the rest of it, and return what stands in its `result.json`.

    Args:
        experiment: what to run.
        run_dir: folder of the run; None for `runs/NAME`.
        resume: the checkpoint to go on from: `auto`, `latest`, `best`, a step, or a path; None for a new run.

    Raises:
        InputError: the experiment cannot be run as it is, or the folder is not free.
        Diverged: the loss or a gradient is not finite.
        Interrupted: SIGTERM or SIGINT has come, and the state is saved.
    """
    check_batch_size(experiment)
    run_dir = run_dir or Path("runs") / experiment.name
    begins = resume is None or (resume == "auto" and not list_steps(run_dir / "checkpoints"))
    device = distributed.init(experiment.device)
    set_arithmetic(deterministic=experiment.deterministic and device.type == "cuda")

    dataset = experiment.data.make().to(device)
    image_shape = tuple(dataset.train.images.shape[1:])
    model = experiment.model.make(image_shape, len(dataset.class_names))
    overhead = measure_overhead(model, image_shape)
    distributed.say(describe(experiment, dataset, overhead, device))
    model = in_precision(model, getattr(torch, experiment.precision))
    if begins and experiment.init_from is not None:
        model = start_from_weights(model, experiment.init_from)
    optimizer = make_optimizer(experiment)
    state = init_train_state(model, optimizer, seed=experiment.seed, device=device)
    train_step, evaluate = make_step_and_evaluate(experiment, model, optimizer, dataset, state.params)

    changes = prepare_run_dir(run_dir, experiment, resume=resume)
    for name, change in changes.items():
        distributed.say(f"changed since the checkpoint: {name}: {change}")
    with closing(
        Checkpoints(
            run_dir / "checkpoints",
            experiment=experiment.to_json(),
            keep=experiment.keep,
            keep_every=experiment.keep_every,
        )
    ) as checkpoints:
        if not begins:
            state = checkpoints.restore(like=state, which=resume)
            distributed.say(f"goes on from step {state.step.item()}")
        write_experiment(run_dir, experiment)
        record_start(run_dir, experiment, dataset, device, step=state.step.item(), changes=changes)
        with (
            closing(MetricWriter(run_dir, start_step=state.step.item(), num_steps=experiment.steps)) as writer,
            catch_interrupts() as interrupted,
        ):
            state, metrics = train(
                state,
                dataset.train,
                train_step=train_step,
                evaluate=evaluate,
                clock=Clock(experiment.steps, experiment.log_every, experiment.eval_every, experiment.save_every),
                seed=experiment.seed,
                batch_size=experiment.batch_size,
                stop_at_nonfinite=experiment.nonfinite == "stop",
                stop_at_save_error=experiment.on_save_error == "stop",
                interrupted=interrupted,
                writer=writer,
                checkpoints=checkpoints,
            )

    result = {
        "experiment": experiment.name,
        "model": experiment.model.name,
        "num_params": overhead.num_params,
        "macs": overhead.macs,
        "steps": state.step.item(),
        **metrics,
        "params_sha256": tree.sha256(state.params),
        "torch": torch.__version__,
        "device": device_name(device),
        "num_processes": distributed.world_size(),
    }
    if distributed.is_main():
        write_whole(run_dir / "result.json", to_json(result, indent=2) + "\n")
        plot_curves(run_dir)
        print(f"top-1 {result['top1']:.2%} after {result['steps']} steps; see {run_dir}/result.json and curves.png")
    return result


def start_from_weights(model: Model, source: str) -> Model:
    """The model with an `init` that gives the weights of a run, a checkpoint or a file, and a word on what is fresh."""
    model, fresh = start_from(model, read_weights(source))
    afresh = f"; of another size here, and fresh: {', '.join(fresh)}" if fresh else ""
    distributed.say(f"starts from the weights of {source}{afresh}")
    return model


def make_optimizer(experiment: Experiment) -> GradientTransformation:
    """The experiment's optimizer, with its clipping before and its average after."""
    optimizer = experiment.optim.make(experiment.schedule.make(experiment.steps))
    if experiment.clip is not None:
        optimizer = chain(clip_by_global_norm(experiment.clip), optimizer)
    if experiment.ema is not None:
        optimizer = chain(optimizer, ema_params(experiment.ema))
    return optimizer


def make_step_and_evaluate(
    experiment: Experiment, model: Model, optimizer: GradientTransformation, dataset: Dataset, params: Params
) -> tuple[TrainStep, Evaluate]:
    """The two functions that the loop calls, compiled if so wanted."""
    mean, std = channel_statistics(dataset.train)
    compiles = experiment.compile == "on" or (experiment.compile == "auto" and mean.device.type == "cuda")
    compiled = partial(torch.compile, disable=not compiles)
    if compiles:
        torch.compiler.reset()  # else it takes an earlier run of this process for the same code with other shapes
    # One process makes one graph of the whole step. In several it breaks where DDP sends gradients: the loss before it
    # is then a graph of its own.
    one_process = distributed.world_size() == 1
    loss_fn = make_loss_fn(model, label_smoothing=experiment.label_smoothing)
    if not one_process:
        loss_fn = compiled(loss_fn, fullgraph=True)
    skip_nonfinite = experiment.nonfinite == "skip"
    update = make_update(optimizer)
    if not compiles and not skip_nonfinite:  # which chooses between the old state and the new
        update = donating(update, donate_argnums=(1, 2))
    train_step = make_train_step(
        distributed.grad_and_value(loss_fn, params),
        update,
        augment=dataset.augment,
        mean=mean,
        std=std,
        accumulate=experiment.accumulate,
        skip_nonfinite=skip_nonfinite,
    )
    eval_step = compiled(make_eval_step(model, mean=mean, std=std), fullgraph=True)
    model_state_step = compiled(make_model_state_step(model, mean=mean, std=std), fullgraph=True)
    statistics = make_statistics(model_state_step, dataset.train, batch_size=experiment.batch_size)
    evaluate = make_evaluate(eval_step, dataset.test, batch_size=experiment.eval_batch_size, statistics=statistics)
    return compiled(train_step, fullgraph=one_process), evaluate


def reproduce(run: Path, experiment: Experiment, *, run_dir: Path | None) -> bool:
    """Run a finished experiment again, say how it compares, and return whether it ended in equal parameters.

    Args:
        run: the run to compare with.
        experiment: its experiment.
        run_dir: folder of the new run; None for `RUN-again`.
    """
    run_dir = run_dir or run.with_name(run.name + "-again")
    starts = read_starts(run)
    if starts:
        torch.set_num_threads(starts[-1]["num_threads"])  # which decides how sums are rounded
    main(experiment, run_dir=run_dir)
    distributed.barrier()  # rank 0 has written the result
    equal, lines = compare_runs(run, run_dir)
    for line in lines:
        distributed.say(line)
    return equal


def set_arithmetic(*, deterministic: bool) -> None:
    """Let float32 be float32, and on CUDA let every operator give the same bits each time, if so wanted."""
    torch.backends.cudnn.allow_tf32 = False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to repeat itself
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and we read none


def check_batch_size(experiment: Experiment) -> None:
    """Raise InputError unless every process gets as many whole micro-batches as the others."""
    parts = distributed.world_size() * experiment.accumulate
    if experiment.batch_size % parts:
        nearest = max(round(experiment.batch_size / parts), 1) * parts
        raise InputError(
            f"a batch of {experiment.batch_size} cannot be cut into {parts} equal parts (processes times --accumulate: "
            f"{distributed.world_size()} x {experiment.accumulate}); set --batch-size {nearest}"
        )


def describe(experiment: Experiment, dataset: Dataset, overhead: Overhead, device: torch.device) -> str:
    """One line on what is about to run."""
    channels, height, width = dataset.train.images.shape[1:]
    return (
        f"{experiment.name}: {experiment.model.name} ({overhead.num_params / 1e6:.2f} M parameters, "
        f"{overhead.macs / 1e6:.1f} M MACs an image) on {experiment.data.name} ({len(dataset.train.labels)} + "
        f"{len(dataset.test.labels)} images of {channels}x{height}x{width}) "
        f"with {experiment.optim.name} and {experiment.schedule.name} on {distributed.world_size()} x {device.type}"
    )


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
"""A disk that is full, cannot be written, or fails."""


@quiet_when_unread()
def run(args: list[str]) -> None:
    """Run a command line.

    Its exit code is 0; 1 after a user's mistake or a failure, which is one message, and of a run that could not be
    reproduced; 2 for a mistake that tyro found; and 75 if it was interrupted and saved.
    """
    code = 0
    try:
        command = parse(args)
        if command.reproduce is None:
            main(command.experiment, run_dir=command.run_dir, resume=command.resume)
        else:
            code = 0 if reproduce(command.reproduce, command.experiment, run_dir=command.run_dir) else 1
    except (InputError, Diverged) as error:
        distributed.barrier()  # leave together: when one rank leaves, torchrun ends the others
        code = f"error: {error}" if distributed.is_main() else 1
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        code = f"error: cannot write {error.filename or 'the files of the run'}: {error.strerror}"
    except Interrupted as error:
        if distributed.is_main():
            run_dir = command.run_dir or Path("runs") / command.experiment.name
            print(f"{error}; go on by --run-dir {run_dir} --resume", file=sys.stderr)
        code = EXIT_CODE
    except KeyboardInterrupt:
        if distributed.is_main():
            print("interrupted; --resume goes on from the latest checkpoint, if there is one", file=sys.stderr)
        code = 130
    distributed.shut_down()
    sys.exit(code)


if __name__ == "__main__":
    run(sys.argv[1:])
