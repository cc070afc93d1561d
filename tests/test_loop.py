from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import backbones.random as random
import backbones.tree as tree
from backbones.augment import normalize
from backbones.checkpoint import SaveError
from backbones.data import Split, channel_statistics
from backbones.interrupt import Interrupted
from backbones.loop import Clock, Diverged, make_evaluate, make_statistics, train
from backbones.models.resnet import BasicBlock, resnet
from backbones.optim.average import EmaParamsState
from backbones.train_step import EvalSums, TrainState, make_eval_step, make_model_state_step


class Recorder:
    """Stands in for the writer and the checkpoints: remembers what it was told, and when."""

    def __init__(self) -> None:
        self.written: list[tuple[str, int]] = []
        self.saved: list[tuple[int, dict[str, float]]] = []
        self.said: list[str] = []
        self.folder = "checkpoints"
        self.failed = False
        self.on_disk: list[int] = []

    def step_done(self) -> None: ...

    def say(self, line: str) -> None:
        self.said.append(line)

    def write(self, split: str, step: int, metrics: dict[str, float]) -> None:
        self.written.append((split, step))

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
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
    stop: bool = True,
    start: int = 0,
    num_steps: int = 10,
    interrupted: Callable[[], bool] = lambda: False,
):
    recorder.on_disk = [start] if start else []

    def train_step(state: TrainState, batch) -> tuple[TrainState, dict[str, torch.Tensor]]:
        state = state._replace(step=state.step + 1)
        flag = torch.tensor(int(state.step == bad_step))
        return state, {"loss": torch.tensor(1.0), "nonfinite": flag}

    return train(
        TrainState(torch.tensor(start), torch.tensor(0), {}, {}, ()),
        Split(torch.zeros(12, 1, 2, 2, dtype=torch.uint8), torch.zeros(12, dtype=torch.int64)),
        train_step=train_step,
        evaluate=lambda state: {"top1": state.step.item() / 10},
        clock=Clock(num_steps, log_every=2, eval_every=4, save_every=3),
        seed=0,
        batch_size=4,
        stop_at_nonfinite=stop,
        stop_at_save_error=stop,
        interrupted=interrupted,
        writer=recorder,
        checkpoints=recorder,
    )


def test_what_is_due_when() -> None:
    recorder = Recorder()
    state, metrics = run(recorder)
    assert state.step == 10 and metrics["top1"] == 1.0 and metrics["images_per_second"] > 0
    assert [step for split, step in recorder.written if split == "train"] == [2, 4, 6, 8, 10]
    assert [step for split, step in recorder.written if split == "test"] == [4, 8, 10]
    assert recorder.saved == [(0, {}), (3, {}), (6, {}), (9, {}), (10, {"top1": 1.0})]


def test_goes_on_from_where_the_state_is() -> None:
    recorder = Recorder()
    run(recorder, start=5)
    assert recorder.written == [("train", 6), ("train", 8), ("test", 8), ("train", 10), ("test", 10)]


def test_nothing_left_to_do_is_evaluated_only() -> None:
    recorder = Recorder()
    _, metrics = run(recorder, start=10)
    assert metrics["top1"] == 1.0 and recorder.written == recorder.saved == []


def test_a_nonfinite_step_stops_before_anything_of_it_is_saved() -> None:
    recorder = Recorder()
    with pytest.raises(Diverged, match=r"not finite at step 5; the last good checkpoint is step 3 in checkpoints"):
        run(recorder, bad_step=5)
    assert recorder.saved == [(0, {}), (3, {})]
    with pytest.raises(Diverged, match=r"at step 1; the last good checkpoint is step 0"):
        run(Recorder(), bad_step=1)
    state, _ = run(recorder, bad_step=5, stop=False)
    assert state.step == 10
    assert recorder.said == ["step 5/10  skipped: the loss, a gradient or an update is not finite"]


def test_an_interrupted_run_finishes_its_step_and_saves_it() -> None:
    recorder = Recorder()
    asked = iter([False] * 4 + [True] * 9)
    with pytest.raises(Interrupted, match="step 5 of 10 is saved in checkpoints"):
        run(recorder, interrupted=lambda: next(asked))
    assert recorder.saved == [(0, {}), (3, {}), (5, {})] and recorder.written[-1] == ("test", 4)
    state, _ = run(Recorder(), interrupted=lambda: recorder.on_disk != [], start=9)  # in the last step, which is saved
    assert state.step == 10


def test_a_save_that_failed_stops_the_run_or_is_told_and_tried_again() -> None:
    def fail_at_step_4() -> bool:
        recorder.failed |= recorder.saved[-1][0] == 3 and not recorder.said
        return False

    recorder = Recorder()
    with pytest.raises(SaveError, match="the disk is full"):
        run(recorder, interrupted=fail_at_step_4)
    assert recorder.saved == [(0, {}), (3, {})]
    recorder = Recorder()
    state, _ = run(recorder, interrupted=fail_at_step_4, stop=False)
    assert state.step == 10 and recorder.said == ["warning: the disk is full"]
    assert [step for step, _ in recorder.saved] == [0, 3, 6, 9, 10]


def test_evaluate_averages_over_samples_not_batches() -> None:
    split = Split(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5))

    def eval_step(params, model_state, batch) -> EvalSums:
        real = batch.labels >= 0
        return EvalSums(
            (batch.labels * real).sum().double(), (batch.labels[real] == 4).sum().double(), *[real.sum()] * 2
        )

    evaluate = make_evaluate(eval_step, split, batch_size=2, statistics=lambda params, model_state: model_state)
    metrics = evaluate(TrainState(None, None, {}, {}, ()))
    assert metrics == {"loss": 10 / 5, "top1": 1 / 5, "top5": 1.0}


def test_averaged_parameters_are_evaluated_with_statistics_of_their_own() -> None:
    """BatchNorm statistics end as those of the training images under the average, whatever they were before."""
    images = torch.randint(0, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split, model = Split(images, torch.arange(64) % 10), resnet(BasicBlock, (1, 1), (3, 16, 16), 10)
    mean, std = channel_statistics(split)
    options = {"mean": mean, "std": std}
    params, model_state = model.init(random.generator(0))
    params["head.weight"] *= 100  # a loss that cares for what comes before the head
    evaluate = make_evaluate(
        make_eval_step(model, **options),
        split,
        batch_size=64,
        statistics=make_statistics(make_model_state_step(model, **options), split, batch_size=64),
    )
    step = torch.tensor(1)
    opt_state = (EmaParamsState(step, torch.tensor(0.9), params),)
    garbage = tree.map(torch.zeros_like, params)
    spoilt = tree.map(lambda leaf: leaf + 0.1, model_state)
    averaged = evaluate(TrainState(step, step, garbage, spoilt, opt_state))
    assert averaged != pytest.approx(evaluate(TrainState(step, step, params, spoilt, ())), rel=0.5)
    logits = model.apply(params, model_state, normalize(images, mean, std), train=True)[0]  # by the batch, which is all
    assert averaged["loss"] == pytest.approx(F.cross_entropy(logits, split.labels).item(), rel=0.06)
