import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from backbones.augment import identity
from backbones.component import use
from backbones.data import fashion_mnist, image_folder
from backbones.experiment import Experiment, Program
from backbones.run.checkpoint import Manifest, SaveError
from backbones.run.loop import Diverged, GoBack, complete, train
from backbones.run.preemption import Preempted
from backbones.run.run_log import RunLog, RunningMeans, Timer
from backbones.run.spikes import SpikeDetector
from backbones.train_step import TrainState
from experiments.digits import digits_resnet18

EXPERIMENT = dataclasses.replace(digits_resnet18, batch_size=4, log_every=2, eval_every=4, save_every=3)


class Recorder:
    """A writer and checkpoints that record their calls."""

    def __init__(self) -> None:
        self.written: list[tuple[str, int]] = []
        self.saved: list[tuple[int, dict[str, float]]] = []
        self.values: list[dict[str, float]] = []
        self.printed: list[str] = []
        self.reported: list[int] = []
        self.folder = Path("a run/checkpoints")
        self.failed = False
        self.on_disk: list[int] = []

    def step_done(self) -> None: ...

    def print(self, line: str) -> None:
        self.printed.append(line)

    def write(self, split: str, step: int, metrics: dict[str, float]) -> None:
        self.written.append((split, step))
        self.values.append(metrics)

    def save(self, state: TrainState, metrics: dict[str, float], *, weights, since_log, recent_losses) -> None:
        self.saved.append((state.step.item(), metrics))

    def wait(self) -> None:
        self.failed, failed = False, self.failed
        if failed:
            raise SaveError("the disk is full")

    def steps(self) -> list[int]:
        return [*self.on_disk, *(step for step, _ in self.saved)]


def run(
    recorder: Recorder,
    *,
    bad_step: int | None = None,
    experiment: Experiment = EXPERIMENT,
    start: int = 0,
    num_steps: int = 10,
    preempted: Callable[[], bool] = lambda: False,
    done: list[int] | None = None,
    spend: Callable[[float], None] = lambda seconds: None,
):
    recorder.on_disk = [start] if start else []

    def train_step(state: TrainState, batch) -> tuple[TrainState, dict[str, torch.Tensor]]:
        state = state._replace(step=state.step + 1)
        if done is not None:
            done.append(state.step.item())
        flag = torch.tensor(int(state.step == bad_step))
        spend(50 if state.step == 1 else 1)  # as if it were compiled first
        noise = {"grad_sq_norm": torch.tensor(2.0), "grad_variance": torch.tensor(6.0)}
        return state, {"loss": state.step.float(), "nonfinite": flag, **noise}

    def evaluate(state: TrainState, weights: object = None) -> dict[str, float]:
        spend(100)
        return {"top1": state.step.item() / 10}

    training = train(
        TrainState(torch.tensor(start), torch.tensor(0), {}, {}, ()),
        experiment,
        Program(
            state=None,
            train_step=train_step,
            batches=lambda step: None,
            evaluate=evaluate,
            weights_of=lambda state: (state.params, state.model_state),
            predict=lambda params, model_state, images: images,
        ),
        RunLog(
            writer=recorder,
            checkpoints=recorder,
            spikes=SpikeDetector(None, margin=1.0),
            report_bad_step=lambda bad: recorder.reported.append(bad.step),
        ),
        num_steps=num_steps,
        preempted=preempted,
    )
    return complete(training)


def test_logs_evaluates_and_saves_at_their_intervals() -> None:
    recorder = Recorder()
    state, metrics = run(recorder)
    assert state.step == 10 and metrics["top1"] == 1.0 and metrics["images_per_second"] > 0
    assert [step for split, step in recorder.written if split == "train"] == [2, 4, 6, 8, 10]
    assert [step for split, step in recorder.written if split == "test"] == [4, 8, 10]
    assert [values["loss"] for values in recorder.values if "loss" in values] == [1.5, 3.5, 5.5, 7.5, 9.5]
    assert recorder.saved == [(0, {}), (3, {}), (6, {}), (9, {}), (10, {"top1": 1.0})]


def test_the_rate_is_that_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without evaluation; the mean of the run also without its first stretch, which compiles."""
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    recorder = Recorder()
    _, metrics = run(recorder, spend=lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    rates = [values["images_per_second"] for values in recorder.values if "top1" not in values]
    assert rates == [pytest.approx(8 / 51), 4, 4, 4, 4] and metrics["images_per_second"] == 4
    assert all(values["gradient_noise_scale"] == 3 for values in recorder.values if "top1" not in values)


def test_continues_from_the_step_of_the_state() -> None:
    recorder = Recorder()
    run(recorder, start=5)
    assert recorder.written == [("train", 6), ("train", 8), ("test", 8), ("train", 10), ("test", 10)]


def test_a_finished_run_is_only_evaluated() -> None:
    recorder = Recorder()
    _, metrics = run(recorder, start=10)
    assert metrics["top1"] == 1.0 and recorder.written == recorder.saved == []


def test_a_nonfinite_step_stops_before_anything_of_it_is_saved() -> None:
    recorder = Recorder()
    with pytest.raises(
        Diverged, match=r"not finite at step 5; the last good checkpoint is step 3 in a run/checkpoints"
    ):
        run(recorder, bad_step=5)
    assert recorder.saved == [(0, {}), (3, {})] and recorder.reported == [5]
    with pytest.raises(Diverged, match=r"at step 1; the last good checkpoint is step 0"):
        run(Recorder(), bad_step=1)
    state, _ = run(recorder, bad_step=5, experiment=dataclasses.replace(EXPERIMENT, nonfinite="skip"))
    assert state.step == 10
    assert recorder.printed[1:] == ["step 5/10  skipped: the loss, a gradient or an update is not finite"]


def test_steps_that_are_passed_over_are_not_done() -> None:
    """Nor do they count in the means, or in the speed."""
    recorder, done = Recorder(), []
    state, _ = run(recorder, experiment=dataclasses.replace(EXPERIMENT, pass_over=(1, 4, 7, 8)), done=done)
    assert state.step == 10 and done == [2, 3, 5, 6, 9, 10]
    trained = [values for values in recorder.values if "top1" not in values]
    assert [values.get("loss") for values in trained] == [2, 3, 5.5, None, 9.5]
    assert all(values["images_per_second"] > 0 for values in trained)
    assert [step for step, _ in recorder.saved] == [0, 3, 6, 9, 10]


def test_a_run_that_shall_go_back_asks_for_it() -> None:
    recorder, rewind = Recorder(), dataclasses.replace(EXPERIMENT, rewind=1)
    with pytest.raises(GoBack, match="is not finite") as error:
        run(recorder, bad_step=5, experiment=rewind)
    assert error.value.bad.step == 5 and error.value.state.step == 6 and recorder.reported == []
    run(recorder, bad_step=5, experiment=dataclasses.replace(rewind, nonfinite="skip"))
    assert recorder.reported == [5]


def test_a_preempted_run_finishes_its_step_and_saves_it() -> None:
    recorder = Recorder()
    asked = iter([False] * 4 + [True] * 9)
    with pytest.raises(
        Preempted, match="after step 5 of 10, saved in a run/checkpoints; resume with --run-dir 'a run' --resume"
    ):
        run(recorder, preempted=lambda: next(asked))
    assert recorder.saved == [(0, {}), (3, {}), (5, {})] and recorder.written[-1] == ("test", 4)
    state, _ = run(Recorder(), preempted=lambda: recorder.on_disk != [], start=9)  # in the last step, which is saved
    assert state.step == 10


def test_a_failed_save_stops_the_run_or_is_a_warning() -> None:
    def fail_at_step_4() -> bool:
        recorder.failed |= recorder.saved[-1][0] == 3 and not recorder.printed
        return False

    recorder = Recorder()
    with pytest.raises(SaveError, match="the disk is full"):
        run(recorder, preempted=fail_at_step_4)
    assert recorder.saved == [(0, {}), (3, {})]
    recorder = Recorder()
    state, _ = run(
        recorder, preempted=fail_at_step_4, experiment=dataclasses.replace(EXPERIMENT, on_save_error="continue")
    )
    assert state.step == 10 and recorder.printed == ["warning: the disk is full"]
    assert [step for step, _ in recorder.saved] == [0, 3, 6, 9, 10]


def test_a_state_that_cannot_be_saved_before_a_stop_is_an_error() -> None:
    """Whatever `on_save_error` is: nobody goes on with it."""

    class Full(Recorder):
        def wait(self) -> None:
            if self.saved and self.saved[-1][0] == 4:
                raise SaveError("the disk is full")

    recorder = Full()
    with pytest.raises(SaveError, match="the disk is full"):
        run(
            recorder,
            preempted=lambda: recorder.saved[-1][0] == 3,
            experiment=dataclasses.replace(EXPERIMENT, on_save_error="continue"),
        )
    assert recorder.saved[-1][0] == 4 and recorder.printed == []


def test_means_continue_after_a_resume() -> None:
    whole, first = RunningMeans({}), RunningMeans({})
    finite, nan = torch.tensor(0), torch.tensor(math.nan)
    metrics = [{"loss": torch.tensor(0.1 * i), "n": torch.tensor(i), "nonfinite": finite} for i in range(7)]
    for each in metrics:
        whole.add(each)
    for each in metrics[:3]:
        first.add(each)
    second = RunningMeans(json.loads(json.dumps(first.to_json())))
    for each in metrics[3:]:
        second.add(each)
    expected = whole.take()
    assert second.take() == expected and expected["n"] == 3.0
    whole.add({"loss": torch.tensor(5.0), "nonfinite": finite})
    whole.add({"loss": torch.tensor(7.0), "nonfinite": finite, "grad_variance": torch.tensor(3.0)})  # --accumulate now
    whole.add({"loss": torch.tensor(9.0), "nonfinite": torch.tensor(1), "grad_variance": nan})
    assert whole.take() == {"loss": 6.0, "grad_variance": 3.0, "nonfinite": 1 / 3}
    whole.add({"loss": torch.tensor(9.0), "nonfinite": torch.tensor(1)})
    assert math.isnan(whole.take()["loss"])


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, 20),
        ({"clip": 1.0}, 20),
        ({"label_smoothing": 0.9}, 0),
        ({"sampling": "balanced"}, 0),
        ({"class_weights": "auto"}, 0),
        ({"augment": use(identity)}, 0),
        ({"data": use(fashion_mnist)}, 0),
    ],
    ids=str,
)
def test_losses_of_another_objective_are_forgotten(change: dict, kept: int) -> None:
    saved = Manifest(5, {}, json.loads(json.dumps(EXPERIMENT.to_json())), None, {}, [1.0] * 20)
    log = RunLog(None, None, SpikeDetector(10.0, margin=0.5), None)
    log.restart(saved, dataclasses.replace(EXPERIMENT, **change))
    assert len(log.spikes.recent) == kept


def test_where_images_are_and_how_they_are_read_is_no_other_objective() -> None:
    def of_folder(**options: object) -> Experiment:
        return dataclasses.replace(EXPERIMENT, data=use(image_folder, **options))

    saved = Manifest(5, {}, json.loads(json.dumps(of_folder(root="a").to_json())), None, {}, [1.0] * 20)
    for experiment, kept in ((of_folder(root="b", workers=2, cache="c"), 20), (of_folder(root="a", center=0.5), 0)):
        log = RunLog(None, None, SpikeDetector(10.0, margin=0.5), None)
        log.restart(saved, experiment)
        assert len(log.spikes.recent) == kept


def test_the_rate_of_a_run_that_goes_back_counts_all_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if no step is left but those to pass over."""
    clock = iter([0.0, 10.0, 20.0, 22.0, 30.0])  # of a start, a stop, ..., and a start
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    timer = Timer()
    assert math.isnan(timer.rate()) and math.isnan(timer.mean_rate())
    for images in (5, 4, 0):
        timer.stop(images)
        if images:
            timer.start()
    assert timer.mean_rate() == timer.rate() == 2
