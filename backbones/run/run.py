"""A run: an experiment, a folder, and the training in between."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

import backbones.distributed as distributed
import backbones.machine as machine
import backbones.tree as tree
from backbones.data import Dataset
from backbones.errors import InputError
from backbones.experiment import Experiment, make_dataset
from backbones.jit import Mode
from backbones.models.cost import ModelCost, measure_cost
from backbones.run.checkpoint import Checkpoints, Which, find_checkpoint, list_steps, parse_which, run_of
from backbones.run.config import write_config
from backbones.run.files import atomic_write, read_json, write_json
from backbones.run.lock import locked
from backbones.run.loop import Training, complete, stopped_after
from backbones.run.metric_lines import plot_curves, read_metrics
from backbones.run.metric_writer import MetricWriter, send_lines
from backbones.run.preemption import handle_signals
from backbones.run.provenance import device_name, record_start
from backbones.run.resume import changes_result, check_run_dir, check_steps_left
from backbones.run.rewind import check_passed_over, train_and_rewind, with_passed_over
from backbones.run.run_dir import CHECKPOINTS, RESULT, latest_run_dir, new_run_dir
from backbones.run.run_log import RunLog
from backbones.run.spikes import make_bad_step_report, make_spike_detector
from backbones.run.start_weights import with_start_weights, without_pretrained
from backbones.run.step_profile import profiled
from backbones.run.trackers import Trackers
from backbones.torch_settings import torch_settings_kept

BAD_FILES = "bad_files.txt"


def run(
    experiment: Experiment,
    *,
    run_dir: str | Path | None = None,
    resume: str | Which | None = None,
    profile: range | None = None,
    log_to: Sequence[str] = (),
    until: int | None = None,
    preempted: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Run an experiment, or the rest of it, and return what is written into its `result.json`.

    A finished run that is resumed stays as it is, unless it gets more steps, or is to be evaluated in another way.

    Args:
        experiment: what to run.
        run_dir: folder of the run; None for the newest of that name if it is resumed, else for a new one.
        resume: the checkpoint to resume: `auto`, `latest`, `best`, a step, or a path; None for a new run.
        profile: the steps to profile, counted from 1.
        log_to: trackers that get the metrics too, such as `mlflow`; see `Trackers`.
        until: a step after which to evaluate, save and return; the rest is for a later call, as if this one had not
            stopped. What is returned then is not written. None for the last step.
        preempted: whether to save and stop, asked before each step; None handles signals.

    Raises:
        InputError: the experiment cannot be run as it is, the folder is not free, or a tracker is not installed.
        Diverged: the loss or a gradient is not finite, or the run cannot get past such a step by going back.
        Preempted: a signal, or `preempted`, asked to stop, and the state is saved.
    """
    resume = parse_which(resume) if isinstance(resume, str) else resume
    choose = new_run_dir if resume is None or isinstance(resume, Path) else latest_run_dir
    with torch_settings_kept():
        device = experiment.init_device()
        trackers = Trackers(log_to)
        folder = distributed.on_main(lambda: Path(run_dir) if run_dir else choose(experiment.name))
        with locked(folder), trackers:
            if resume is not None and experiment.rewind is not None:
                experiment = with_passed_over(experiment, folder)
            training = train_in(
                folder,
                experiment,
                device,
                resume=resume,
                profile=profile,
                trackers=trackers,
                until=until,
                preempted=preempted,
            )
            return complete(training)


def train_in(
    folder: Path,
    experiment: Experiment,
    device: torch.device,
    *,
    resume: Which | None,
    profile: range | None = None,
    trackers: Trackers = Trackers(),
    until: int | None = None,
    dataset: Dataset | None = None,
    preempted: Callable[[], bool] | None = None,
) -> Training[dict[str, Any]]:
    """The training of `run`, in a folder that is locked, on the device that the experiment has chosen.

    `dataset` is that of the experiment, if it is read already. `preempted` says whether to save and stop; None handles
    signals.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # of an earlier run in this process
    earlier_peak = machine.peak_memory(device)
    changes = distributed.on_main(lambda: check_run_dir(folder, experiment, resume=resume))
    with distributed.long_timeout():
        dataset = dataset or make_dataset(experiment.data, device)
    steps = distributed.on_main(lambda: list_steps(folder / CHECKPOINTS))
    is_new = resume is None or (resume == "auto" and not steps)
    model = (experiment if is_new else without_pretrained(experiment)).make_model(dataset.info)
    cost = distributed.on_main(lambda: measure_cost(model, dataset.info.image_shape))
    distributed.print0(describe_run(experiment, dataset, cost, device))
    num_steps = experiment.num_steps(dataset)
    last_step = num_steps if until is None else min(until, num_steps)
    is_finished = resume in ("auto", "latest") and steps[-1:] == [num_steps] and not changes_result(changes)
    if is_finished and (old_result := distributed.on_main(lambda: _read_result(folder))) is not None:
        _leave_finished(folder, experiment, old_result, trackers, profile)
        return old_result
    if is_new:
        model = with_start_weights(model, experiment, dataset.info.image_shape)
    program = experiment.make(dataset, model)
    if experiment.freeze or experiment.train_only:
        distributed.print0(f"trained: {tree.size(program.state.params):,} of {cost.num_params:,} parameters")
    for name, change in changes.items():
        distributed.print0(f"changed since the checkpoint: {name}: {change}")
    with ExitStack() as stack:
        checkpoints = stack.enter_context(
            closing(Checkpoints(folder / CHECKPOINTS, experiment=experiment, info=dataset.info))
        )
        states, program = [program.state], program._replace(state=None)  # type: ignore[arg-type]
        spikes = make_spike_detector(experiment, dataset.info.num_classes)
        saved, log_every = None, math.inf
        if resume is not None and not is_new:
            states[0], saved = checkpoints.restore(like=states[0], which=resume, num_steps=num_steps)
            check_passed_over(experiment, saved)
            if not isinstance(resume, Path):  # else the lines of the steps before are elsewhere
                log_every = saved.experiment.get("log_every", math.inf)
            distributed.print0(f"resumed from step {int(states[0].step)}")
        start_step = int(states[0].step)
        if profile is not None:
            left = range(start_step + 1, last_step + 1)
            program = stack.enter_context(profiled(program, profile, left=left, folder=folder))
        if start_step == num_steps:
            check_steps_left(changes, folder)
        if distributed.is_main():
            (folder / CHECKPOINTS).mkdir(exist_ok=True)
            record_start(  # before all other files, so that a full disk changes nothing
                folder,
                experiment,
                dataset,
                device,
                step=start_step,
                changes=changes,
                origin=run_of(find_checkpoint(resume)) if isinstance(resume, Path) else None,
                init_sha256=tree.sha256(states[0].params) if is_new else None,
            )
            write_config(folder, experiment)
            _list_bad_files(folder, dataset)
            (folder / RESULT).unlink(missing_ok=True)  # it is not finished any more
        checkpoints.supersede_after(start_step)
        trackers.start(folder, experiment)
        writer = MetricWriter(
            folder, start_step=start_step, num_steps=last_step, log_every=log_every, trackers=trackers
        )
        stack.enter_context(closing(writer))
        report = make_bad_step_report(folder, experiment, dataset.train, device, writer.print)
        log = RunLog(writer, checkpoints, spikes, report)
        if saved is not None:
            log.restart(saved, experiment)
        stop = stack.enter_context(handle_signals() if preempted is None else nullcontext(preempted))
        state, metrics = yield from train_and_rewind(
            states.pop(),  # no reference is left here, which would keep the first state in memory to the end
            experiment,
            program,
            log,
            num_steps=last_step,
            preempted=stop,
        )
        if int(state.step) < num_steps and distributed.any_rank(stop()):  # in the evaluation after step `until`, say
            raise stopped_after(int(state.step), num_steps, checkpoints.folder)

    result = {
        "experiment": experiment.name,
        "model": experiment.model.label,
        "num_params": cost.num_params,
        "macs": cost.macs,
        "steps": state.step.item(),
        **metrics,
        "seconds": writer.seconds,
        "peak_memory": peak if (peak := machine.peak_memory(device)) > earlier_peak else None,
        "params_sha256": tree.sha256(state.params),
        "torch": torch.__version__,
        "device": device_name(device),
        "num_processes": distributed.world_size(),
    }
    if distributed.is_main() and result["steps"] == num_steps:
        _finish(folder, result, trackers)
    return result


def _list_bad_files(folder: Path, dataset: Dataset) -> None:
    """Write `bad_files.txt`, if files of the data set are left out."""
    if bad_files := dataset.train.bad_files + dataset.test.bad_files:
        print(f"{len(bad_files)} files cannot be read, and are left out: see {folder / BAD_FILES}")
        atomic_write(folder / BAD_FILES, "\n".join(bad_files) + "\n")


def _finish(folder: Path, result: dict[str, Any], trackers: Trackers) -> None:
    """Draw the curves, and write and print the result."""
    plot_curves(folder)
    if math.isnan(result["images_per_second"]):  # no step was left: it is that of the last line
        rates = [line.get("images_per_second") for line in read_metrics(folder)]
        result["images_per_second"] = next(filter(None, reversed(rates)), math.nan)
    write_json(folder / RESULT, result)  # the last file: now the run is finished
    _send_result(trackers, result)
    print(f"top-1 {result['top1']:.2%} after {result['steps']} steps; see {folder / RESULT} and curves.png")


def _send_result(trackers: Trackers, result: dict[str, Any]) -> None:
    numbers = {f"result/{key}": value for key, value in result.items() if isinstance(value, int | float)}
    trackers.log(result["steps"], numbers)


def _leave_finished(
    folder: Path, experiment: Experiment, result: dict[str, Any], trackers: Trackers, profile: range | None
) -> None:
    """Say that a run is finished, and send it to trackers, which may be other ones than when it was trained."""
    if profile is not None:
        raise InputError(f"the run in {folder} is finished: there are no steps to profile; --steps N continues it")
    distributed.print0(f"the run in {folder} is finished: {result['steps']} steps; --steps N continues it")
    trackers.start(folder, experiment)
    if distributed.is_main():
        send_lines(trackers, read_metrics(folder))
        _send_result(trackers, result)


def _read_result(folder: Path) -> dict[str, Any] | None:
    with suppress(InputError):  # where it is missing or damaged it is written again
        return read_json(folder / RESULT)
    return None


HOW: dict[Mode, str] = {"eager": "eager", "compile": "compiled", "cudagraph": "compiled into a CUDA graph"}
"""How a step runs, in words."""


def describe_run(experiment: Experiment, dataset: Dataset, cost: ModelCost, device: torch.device) -> str:
    """One line on what is about to run."""
    channels, height, width = dataset.info.image_shape
    macs = "" if cost.macs is None else f", {cost.macs / 1e6:.1f} M MACs per image"
    return (
        f"{experiment.name}: {experiment.model.label} ({cost.num_params / 1e6:.2f} M parameters{macs}) on "
        f"{experiment.data.name} ({dataset.train.size} + "
        f"{dataset.test.size} images of {channels}x{height}x{width}) "
        f"with {experiment.optim.name} and {experiment.schedule.name} on {distributed.world_size()} x {device.type} in "
        f"{machine.choose_precision(experiment.precision, device)}, {HOW[experiment.mode(device)]}"
    )
