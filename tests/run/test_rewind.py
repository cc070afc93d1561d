"""Going back before a step that went wrong: the run ends as one that passes over the same steps from the start."""

import dataclasses
import json
import math
import weakref
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers.poison import BAD, PASS_OVER, POISONED, REWIND
from helpers.processes import run_ranks
from helpers.runs import ROOT, without_times
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import backbones.experiment
from backbones.commands.reproduce import main as reproduce
from backbones.experiment import Experiment
from backbones.run.checkpoint import read_manifest
from backbones.run.config import read_experiment
from backbones.run.files import read_json
from backbones.run.loop import Diverged
from backbones.run.rewind import MOST_REWINDS
from backbones.run.run import run


def stored(run_dir: Path) -> Experiment:
    return read_experiment(run_dir / "config.json")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that passes over the bad step from the start."""
    path = tmp_path_factory.mktemp("straight") / "run"
    run(PASS_OVER, run_dir=path)
    assert not (path / "spikes").exists()
    return path


def check(run_dir: Path, straight: Path) -> None:
    """Raise AssertionError unless a run is in all that is kept of it the one that was straight."""
    ended = [read_json(path / "result.json")["params_sha256"] for path in (run_dir, straight)]
    assert ended[0] == ended[1]
    assert without_times(run_dir) == without_times(straight)
    assert stored(run_dir) == PASS_OVER
    saved, expected = (read_manifest(path / "checkpoints" / "60") for path in (run_dir, straight))
    assert saved._replace(files={}) == expected._replace(files={})  # orbax writes the time into one


def test_a_run_that_goes_back(straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    run(REWIND, run_dir=path)
    check(path, straight)
    lines = capsys.readouterr().out
    assert f"step {BAD}/60  the loss of " in lines
    assert f"\nback to step 40, to pass over steps {BAD - 1} to {BAD}\n" in lines
    assert json.loads((path / "spikes" / f"{BAD}.json").read_text())["parameters_of_step"] == 40
    events = EventAccumulator(str(path / "tensorboard")).Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == [step for step in range(1, 61) if step not in PASS_OVER.pass_over]
    assert reproduce([str(path)])
    assert "back to step" not in capsys.readouterr().out


def test_a_run_that_dies_after_it_went_back(straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it has saved again, and later, and in the step that will be found to be bad."""
    make_batches = backbones.experiment.make_batches
    for deaths in ([(40, 2), (44, 1)], [(43, 1), (50, 1)]):
        for step, time in deaths:
            calls = []

            def make_dying(*args, step: int = step, time: int = time, calls: list = calls, **kwargs):
                batches = make_batches(*args, **kwargs)

                def dying(at: int):
                    calls.append(at)
                    if calls.count(step) == time:
                        raise KeyboardInterrupt
                    return batches(at)

                return dying

            monkeypatch.setattr(backbones.experiment, "make_batches", make_dying)
            with pytest.raises(KeyboardInterrupt):
                run(REWIND, run_dir=tmp_path / str(deaths), resume="auto")
        monkeypatch.undo()
        run(REWIND, run_dir=tmp_path / str(deaths), resume="latest")
        check(tmp_path / str(deaths), straight)


def test_a_run_that_is_resumed_as_it_was_started_passes_over_the_same_steps(tmp_path: Path) -> None:
    for steps in (60, 80):
        run(dataclasses.replace(REWIND, steps=steps), run_dir=tmp_path, resume="auto")
    assert stored(tmp_path).pass_over == PASS_OVER.pass_over
    assert read_manifest(tmp_path / "checkpoints" / "80").experiment["pass_over"] == [*PASS_OVER.pass_over]
    run(dataclasses.replace(REWIND, steps=60, pass_over=(50,)), run_dir=tmp_path, resume=40)
    assert 50 in stored(tmp_path).pass_over and BAD - 1 in stored(tmp_path).pass_over


def test_going_back_over_one_step_is_to_skip_it(tmp_path: Path) -> None:
    nan = dataclasses.replace(POISONED, augment=POISONED.augment.replace(pixel=math.nan))
    skip = run(dataclasses.replace(nan, nonfinite="skip"), run_dir=tmp_path / "skip")
    back = run(dataclasses.replace(nan, rewind=1), run_dir=tmp_path / "back")
    assert back["params_sha256"] == skip["params_sha256"]
    both = run(dataclasses.replace(nan, nonfinite="skip", rewind=1), run_dir=tmp_path / "both")
    assert both["params_sha256"] == skip["params_sha256"] and stored(tmp_path / "both").pass_over == ()


def test_no_earlier_state_is_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the first one, nor after going back."""
    make, seen, alive = Experiment.make, [], []

    def make_watched(*args):
        program = make(*args)

        def train_step(state, batch, step=program.train_step):
            seen.append(weakref.ref(state.params["2.weight"]))
            alive.append(sum(ref() is not None for ref in seen))
            return step(state, batch)

        return program._replace(train_step=train_step)

    monkeypatch.setattr(Experiment, "make", make_watched)
    run(dataclasses.replace(POISONED, rewind=1), run_dir=tmp_path)
    assert len(alive) == 45 + 19 and max(alive) == 2  # with the parameters that were evaluated last


def test_a_run_that_cannot_get_past(tmp_path: Path) -> None:
    """It goes back a few times, to its oldest checkpoint where there is none before the steps to pass over."""
    augment = POISONED.augment.replace(pixel=math.nan, sample=None, epoch=1)  # from step 45 on
    always = dataclasses.replace(POISONED, augment=augment, rewind=7, save_every=5, keep=1, eval_every=100, log_every=1)
    last = 45 + MOST_REWINDS
    assert MOST_REWINDS == 10
    message = rf"not finite at step {last}; .* is step 50 .* the run went back {MOST_REWINDS} times"
    with pytest.raises(Diverged, match=message):
        run(always, run_dir=tmp_path)
    assert stored(tmp_path).pass_over == tuple(range(41, last))


@pytest.mark.slow
def test_a_compiled_step_that_is_written_over_in_place(tmp_path: Path) -> None:
    """Its bits are those of the eager step."""
    with mock.patch("torch.compile", partial(torch.compile, backend="aot_eager")):
        for name, experiment, how in (("back", REWIND, "on"), ("straight", PASS_OVER, "off")):
            run(dataclasses.replace(experiment, compile=how, ema=None, accumulate=1), run_dir=tmp_path / name)
    results = [read_json(tmp_path / name / "result.json") for name in ("back", "straight")]
    assert results[0]["params_sha256"] == results[1]["params_sha256"]
    assert without_times(tmp_path / "back") == without_times(tmp_path / "straight")


@pytest.mark.slow
def test_all_ranks_go_back_together(tmp_path: Path) -> None:
    """And as many processes audit what they have trained."""
    done = run_ranks(2, ROOT / "tests" / "helpers" / "ranks.py", "rewind", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("back to step 40, ") == done.stdout.count("OK: all ") == 1
    assert done.stdout.count("all equal") == 2
    assert stored(tmp_path / "back") == PASS_OVER and (tmp_path / "back" / "spikes" / f"{BAD}.png").exists()


def test_losses_of_another_objective_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that is resumed with a larger loss does not go back."""
    clean = dataclasses.replace(REWIND, augment=POISONED.augment.replace(pixel=0.0), log_every=5)
    run(clean, run_dir=tmp_path)
    longer = dataclasses.replace(clean, steps=80, label_smoothing=0.9)
    run(longer, run_dir=tmp_path, resume="latest")
    assert "back to step" not in capsys.readouterr().out and stored(tmp_path).pass_over == ()
