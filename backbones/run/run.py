"""A run: an experiment, a folder, and the training in between."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

import backbones.distributed as distributed
import backbones.tree as tree
from backbones.data import Dataset
from backbones.experiment import Experiment
from backbones.models import Model, with_pretrained
from backbones.run.checkpoint import Checkpoints, Which, list_steps, read_weights
from backbones.run.files import atomic_write, to_json
from backbones.run.loop import RunningMeans, train
from backbones.run.metric_writer import MetricWriter, plot_curves
from backbones.run.overhead import Overhead, measure_overhead
from backbones.run.preemption import handle_signals
from backbones.run.provenance import device_name, record_start
from backbones.run.run_dir import RunDir, latest_run_dir, new_run_dir, prepare_run_dir, write_config


def run(experiment: Experiment, *, run_dir: Path | None = None, resume: Which | None = None) -> dict[str, Any]:
    """Run an experiment, or the rest of it, and return what is written into its `result.json`.

    Args:
        experiment: what to run.
        run_dir: folder of the run; None for a new one, `runs/NAME` or with a number behind it.
        resume: the checkpoint to resume: `auto`, `latest`, `best`, a step, or a path; None for a new run.

    Raises:
        InputError: the experiment cannot be run as it is, or the folder is not free.
        Diverged: the loss or a gradient is not finite.
        Preempted: a signal asked to stop, and the state is saved.
    """
    device = experiment.init_device()
    dataset = experiment.data.make(device=device)
    model = experiment.make_model(dataset.info)
    overhead = measure_overhead(model, dataset.info.image_shape)
    distributed.print0(describe(experiment, dataset, overhead, device))
    folder = distributed.on_main(partial(_existing_folder, experiment.name, run_dir, resume))
    is_new = resume is None or (resume == "auto" and not distributed.on_main(lambda: _has_checkpoint(folder)))
    if is_new and experiment.init_from is not None:
        model = _start_from_weights(model, experiment.init_from)
    program, num_steps = experiment.make(dataset, model), experiment.num_steps(dataset)

    folder = distributed.on_main(lambda: folder or new_run_dir(experiment.name))
    changes = distributed.on_main(partial(prepare_run_dir, folder, experiment, resume=resume))
    for name, change in changes.items():
        distributed.print0(f"changed since the checkpoint: {name}: {change}")
    with closing(Checkpoints(folder.checkpoints, experiment=experiment, info=dataset.info)) as checkpoints:
        since_log: dict[str, Any] = {}
        if resume is not None and not is_new:
            state, since_log = checkpoints.restore(like=program.state, which=resume)
            program = program._replace(state=state)
            distributed.print0(f"resumed from step {int(state.step)}")
            del state
        start_step = int(program.state.step)
        states, program = [program.state], program._replace(state=None)  # type: ignore[arg-type]
        if distributed.is_main():
            write_config(folder, experiment)
            record_start(folder, experiment, dataset, device, step=start_step, changes=changes)
        with (
            closing(MetricWriter(folder, start_step=start_step, num_steps=num_steps)) as writer,
            handle_signals() as preempted,
        ):
            state, metrics = train(
                states.pop(),  # the loop alone holds it: else the first state would be kept in memory to the end
                experiment,
                program,
                num_steps=num_steps,
                means=RunningMeans(since_log),
                preempted=preempted,
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
        atomic_write(folder.result, to_json(result, indent=2) + "\n")
        plot_curves(folder)
        print(f"top-1 {result['top1']:.2%} after {result['steps']} steps; see {folder.result} and {folder.curves.name}")
    return result


def _existing_folder(name: str, run_dir: Path | None, resume: Which | None) -> RunDir | None:
    """The folder that is named, or that of the run to resume; None for a new one."""
    if run_dir is not None:
        return RunDir(run_dir)
    return None if resume is None or isinstance(resume, Path) else latest_run_dir(name)


def _has_checkpoint(run_dir: RunDir | None) -> bool:
    return run_dir is not None and bool(list_steps(run_dir.checkpoints))


def _start_from_weights(model: Model, source: str) -> Model:
    """The model with an `init` that gives the weights of a run, a checkpoint or a file; says what is initialised."""
    model, fresh = with_pretrained(model, read_weights(source))
    note = f"; of another size here, and initialised: {', '.join(fresh)}" if fresh else ""
    distributed.print0(f"starts from the weights of {source}{note}")
    return model


def describe(experiment: Experiment, dataset: Dataset, overhead: Overhead, device: torch.device) -> str:
    """One line on what is about to run."""
    channels, height, width = dataset.info.image_shape
    return (
        f"{experiment.name}: {experiment.model.name} ({overhead.num_params / 1e6:.2f} M parameters, "
        f"{overhead.macs / 1e6:.1f} M MACs an image) on {experiment.data.name} ({dataset.train.size} + "
        f"{dataset.test.size} images of {channels}x{height}x{width}) "
        f"with {experiment.optim.name} and {experiment.schedule.name} on {distributed.world_size()} x {device.type}"
    )
