"""The metrics of a run in other trackers, beside its own files: wandb, trackio, mlflow, or one of the user's own."""

import importlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

import backbones.distributed as distributed
from backbones.component import import_object
from backbones.errors import InputError, check_known, first_line
from backbones.experiment import Experiment
from backbones.run.config import flatten
from backbones.run.files import read_json, write_json
from backbones.run.preemption import Preempted

T = TypeVar("T")

PROJECT = "backbones"
"""The project or experiment of a tracker that runs belong to, unless the environment names another."""

IDS = "trackers.json"

WAIT_AT_THE_END = 20.0
"""Seconds that a finished run waits for its trackers."""

LONGEST_PAUSE = 600.0
"""Seconds between attempts to reach a tracker; at first it is 1, then twice the last."""

Log = Callable[[int, dict[str, float]], None]
"""(step, metrics such as `{"train/loss": 2.3}`)."""


class Tracker(NamedTuple):
    """One run in a tracker. Its functions may raise: they are called again later, with the same arguments."""

    id: str
    """Of the run in the tracker; it is kept in the run folder."""
    log: Log
    """Called for each line of `metrics.jsonl`; by a resumed run from the first one on, so that none is missing."""
    finish: Callable[[BaseException | None], None]
    """Called at the end, with the error that ended the run early, if it was one."""


Start = Callable[[str, dict[str, Any], str | None], Tracker]
"""(name of the run folder, options of the experiment by name, id of the run to continue or None) -> tracker."""


def start_wandb(run_name: str, config: dict[str, Any], resume_id: str | None) -> Tracker:
    """Weights & Biases: it takes no step before its last one."""
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=os.environ.get("WANDB_NAME", run_name),
        id=resume_id,
        resume="allow",
        config=config,
        allow_val_change=True,
        reinit="create_new",
    )
    last_step = run.step - 1
    log = _without_known(lambda step, metrics: run.log(metrics, step=step), lambda name: last_step)
    return Tracker(run.id, log, lambda error: run.finish(exit_code=0 if error is None else 1))


def start_trackio(run_name: str, config: dict[str, Any], resume_id: str | None) -> Tracker:
    """trackio: it knows a run by its name, which is therefore made unique."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    name = resume_id or f"{run_name}-{uuid.uuid4().hex[:4]}"
    run = trackio.init(PROJECT, name=name, config=config, resume="allow")
    last_steps = {key: line["step"] for line in SQLiteStorage.get_logs(PROJECT, name) for key in line}
    others = -1 if last_steps else run._next_step - 1  # where the run is on a server, all that is known of it
    log = _without_known(lambda step, metrics: run.log(metrics, step=step), lambda name: last_steps.get(name, others))
    return Tracker(name, log, lambda error: run.finish())


def start_mlflow(run_name: str, config: dict[str, Any], resume_id: str | None) -> Tracker:
    """MLflow: options are those of the first start, since it lets no parameter change."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient()
    if resume_id is None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = client.get_experiment_by_name(name)
        experiment_id = client.create_experiment(name) if found is None else found.experiment_id
        run_id = client.create_run(experiment_id, run_name=run_name).info.run_id
        try:
            client.log_batch(run_id, params=[Param(key, str(value)) for key, value in config.items()])
        except BaseException:
            client.delete_run(run_id)  # the next attempt makes another one
            raise
        last_steps = {}
    else:
        run_id = resume_id
        client.update_run(run_id, status="RUNNING")
        names = client.get_run(run_id).data.metrics
        last_steps = {name: max(point.step for point in client.get_metric_history(run_id, name)) for name in names}

    def log(step: int, metrics: dict[str, float]) -> None:
        now = round(1000 * time.time())
        client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()])

    def finish(error: BaseException | None) -> None:
        stopped = isinstance(error, Preempted | KeyboardInterrupt)
        client.set_terminated(run_id, "FINISHED" if error is None else "KILLED" if stopped else "FAILED")

    return Tracker(run_id, _without_known(log, lambda name: last_steps.get(name, -1)), finish)


def _without_known(log: Log, last_step: Callable[[str], int]) -> Log:
    """`log` without what the tracker has already: `last_step(name)` was the last step of a metric there, or -1."""
    sent: dict[str, int] = {}

    def log_new(step: int, metrics: dict[str, float]) -> None:
        new = {name: value for name, value in metrics.items() if step > max(last_step(name), sent.get(name, -1))}
        if new:
            log(step, new)
            sent.update(dict.fromkeys(new, step))

    return log_new


TRACKERS: dict[str, Start] = {"wandb": start_wandb, "trackio": start_trackio, "mlflow": start_mlflow}
"""Name of the tracker, of its package, and of the extra that installs it -> how a run is started in it."""


def find_tracker(name: str) -> Start:
    """The tracker of a name, or what is at `module:name`.

    Raises:
        InputError: there is none, or its package is not installed.
    """
    if ":" in name:
        return import_object(name)
    start = TRACKERS[check_known("tracker", name, TRACKERS)]
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"--log-to {name}: {error}; install it by pip install -e '.[{name}]'") from error
    return start


class Trackers:
    """Sends the metrics of a run to trackers, each in a thread of its own; on other ranks than 0 it does nothing.

    Args:
        names: those of `TRACKERS`, or `module:name` of a `Start`.

    Raises:
        InputError: there is no tracker of a name, or its package is not installed.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._starts: dict[str, Start] = {}
        self._senders: list[_Sender] = []
        if names:
            distributed.on_main(lambda: self._starts.update({name: find_tracker(name) for name in names}))

    def start(self, run_dir: Path, experiment: Experiment) -> None:
        """Begin the run of a folder in all trackers, or continue it."""
        self._senders = [_Sender(name, start, run_dir, experiment) for name, start in self._starts.items()]

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Send a line, without waiting for it."""
        for sender in self._senders:
            sender.send(lambda tracker: tracker.log(step, metrics))

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sender in self._senders:
            sender.end(error)
        deadline = time.monotonic() + WAIT_AT_THE_END
        for sender in self._senders:
            sender.join(deadline)


class _Sender:
    """Calls one tracker, in order and in a thread of its own: neither its network nor its errors reach the run.

    A call that fails is repeated, after a pause; at the end of the run once more and at once.
    """

    def __init__(self, name: str, start: Start, run_dir: Path, experiment: Experiment) -> None:
        self._name, self._start, self._run_dir, self._config = name, start, run_dir, flatten(experiment)
        self._calls: SimpleQueue[Callable[[Tracker], None] | None] = SimpleQueue()
        self._ending = threading.Event()
        self._warned = self._done = False
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def send(self, call: Callable[[Tracker], None]) -> None:
        self._calls.put(call)

    def end(self, error: BaseException | None) -> None:
        self._calls.put(lambda tracker: tracker.finish(error))
        self._calls.put(None)
        self._ending.set()

    def join(self, deadline: float) -> None:
        self._thread.join(max(deadline - time.monotonic(), 0.0))
        if not self._done:
            self._print("some metrics were not sent before the end of the run")

    def _run(self) -> None:
        with suppress(Exception):  # has been printed, and `join` prints what comes of it
            tracker = self._until_it_works(self._open)
            self._until_it_works(partial(self._keep_id, tracker.id))
            while (call := self._calls.get()) is not None:
                self._until_it_works(partial(call, tracker))
            self._done = True

    def _until_it_works(self, call: Callable[[], T]) -> T:
        pause, is_last = 1.0, False
        while True:
            try:
                return call()
            except Exception as error:
                if not self._warned:
                    reason = first_line(error)
                    self._print(f"{reason}; the run goes on, and metrics are kept until they can be sent")
                self._warned = True
                if is_last:
                    raise
                is_last = self._ending.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _open(self) -> Tracker:
        tracker = self._start(self._run_dir.absolute().name, self._config, _read_ids(self._run_dir).get(self._name))
        if not isinstance(tracker, Tracker):
            raise TypeError(f"it gives a {type(tracker).__name__}; wanted a Tracker")
        return tracker

    def _keep_id(self, run_id: str) -> None:
        with _ids_lock:
            ids = {**_read_ids(self._run_dir), self._name: run_id}
            write_json(self._run_dir / IDS, ids)

    def _print(self, message: str) -> None:
        tqdm.write(f"warning: --log-to {self._name}: {message}", file=sys.stderr)  # above the progress bar


_ids_lock = threading.Lock()


def _read_ids(run_dir: Path) -> dict[str, str]:
    """Name of a tracker -> id of the run in it."""
    return read_json(run_dir / IDS) if (run_dir / IDS).exists() else {}
