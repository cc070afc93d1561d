import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch.nn.modules.module as module_hooks
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from backbones.component import use
from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.optim import sam_sgd
from backbones.run.run import run
from backbones.run.step_profile import PHASES, WAITING, parse_steps, profiled, tables
from backbones.train_step import TrainState
from backbones.types import Batch, Metrics


def test_steps() -> None:
    assert parse_steps("5:8") == range(5, 8)


@pytest.mark.parametrize("text", ["5", "5:", ":8", "8:5", "5:5", "0:3", "-1:3", "a:b", ""])
def test_what_is_no_range_of_steps(text: str) -> None:
    with pytest.raises(InputError, match="A:B"):
        parse_steps(text)


def test_where_the_time_went(experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    experiment = replace(experiment, steps=6, accumulate=2, eval_every=4)  # which is not among the modules
    with pytest.raises(InputError, match="steps 1 to 6"):
        run(experiment, run_dir=tmp_path / "outside", profile=range(5, 8))
    plain = run(experiment, run_dir=tmp_path / "plain")
    profiled = run(experiment, run_dir=tmp_path / "profiled", profile=range(3, 6))
    assert profiled["params_sha256"] == plain["params_sha256"]
    with pytest.raises(InputError, match="plain is finished: there are no steps to profile; --steps N continues it"):
        run(experiment, run_dir=tmp_path / "plain", resume="auto", profile=range(3, 6))
    trace = json.loads((tmp_path / "profiled" / "profile-3-6.json").read_text())
    names = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    assert names.count("train_step") == names.count("update") == 3 and names.count("backward") == 6

    rows = {
        row[0]: [float(cell.rstrip("%") or "nan") for cell in row[1:]]
        for line in capsys.readouterr().out.splitlines()
        if len(row := [cell.strip() for cell in line.strip("|").split("|")]) > 3 and re.match(r"\d", row[1])
    }
    phases = [*PHASES, "rest of the step", WAITING, "between steps"]
    assert sum(rows[name][1] for name in phases) == pytest.approx(100, abs=4)  # each is rounded
    assert all(rows[name][0] >= 0 for name in phases)
    forward, backward, *_ = rows["model"]
    assert 0 < forward <= rows["forward"][0] and 0 < backward <= rows["backward"][0]
    parts = [values for name, values in rows.items() if name.count(".") == 1]
    assert len(parts) >= 2
    for i in (0, 1):
        assert sum(values[i] for values in parts) <= rows["model"][i] + 0.1 * len(parts)


def test_a_second_gradient_is_a_part_of_the_update(experiment: Experiment, tmp_path: Path, capsys) -> None:
    run(replace(experiment, optim=use(sam_sgd), steps=4), run_dir=tmp_path, profile=range(2, 5))
    (rest,) = re.findall(r"\| rest of the step \| (\S+) \|", capsys.readouterr().out)
    assert float(rest) >= 0
    spans = [("train_step", 0, 10), ("forward", 0, 2), ("backward", 2, 4), ("update", 4, 9)]
    spans += [("forward", 5, 6), ("backward", 6, 8)]  # of the second gradient
    events = [FunctionEvent(0, name, 0, 1000 * start, 1000 * end) for name, start, end in spans]
    shown = tables(events, seconds=0.01, num_steps=1)
    assert all(f"| {row} |" in shown for row in ("forward | 2.0", "backward | 2.0", "update | 5.0"))


def test_steps_are_counted_as_the_run_counts_them(experiment: Experiment, tmp_path: Path, capsys) -> None:
    """Also where some are passed over, the last of them too."""
    experiment = replace(experiment, steps=7, pass_over=(1, 3, 5))
    program = experiment.make()
    computed: list[int] = []

    def spy(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        computed.append(int(state.step) + 1)
        return program.train_step(state, batch)

    with profiled(program._replace(train_step=spy), range(3, 6), left=range(1, 8), folder=tmp_path) as profiling:
        state = program.state
        for step in (2, 4, 6):
            state.step.fill_(step - 1)
            state, _ = profiling.train_step(state, profiling.batches(step - 1))
    trace = json.loads((tmp_path / "profile-3-6.json").read_text())
    names = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    assert names.count("train_step") == 1 and computed == [2, 4, 6]
    assert "the trace of steps 3:6 is in" in capsys.readouterr().out
    assert not module_hooks._global_forward_pre_hooks


def test_a_range_outside_of_the_rest_changes_nothing(experiment: Experiment, tmp_path: Path) -> None:
    experiment = replace(experiment, steps=6, save_every=2, eval_every=2, keep=9)
    run(experiment, run_dir=tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="steps 5 to 6"):
        run(experiment, run_dir=tmp_path, resume=4, profile=range(2, 4))
    (tmp_path / "provenance.json").write_text("[")
    with pytest.raises(InputError, match=r"provenance\.json is damaged"):
        run(experiment, run_dir=tmp_path, resume=4)
    assert sorted(tmp_path.rglob("*")) == before


def test_marks_that_a_gpu_repeats_count_once() -> None:
    """A step of 10 ms in Python, of which the GPU computes as much as it is given, and marks it again."""

    def event(name: str, end: int, kernel: int = 0, device: DeviceType = DeviceType.CPU) -> FunctionEvent:
        made = FunctionEvent(0, name, 0, 0, end, use_device="cuda", device_type=device)
        if kernel:
            made.append_kernel("kernel", 0, kernel)
        return made

    def shown(kernel: int) -> list[str]:
        marks = [event("train_step", 10_000, kernel), event("forward", 4_000, kernel), event("model", 4_000, kernel)]
        repeated = [event("forward", kernel, device=DeviceType.CUDA)]
        return tables([*marks, *repeated], seconds=0.02, num_steps=1).splitlines()

    assert "| forward | 4.0 | 20% | 0 |" in shown(kernel=3_000)
    assert shown(3_000)[-1] == "times are those of Python: of a step, 3.0 ms on the GPU and 10.0 ms in Python"
    assert "| forward | 15.0 | 75% | 0 |" in shown(kernel=15_000)
    assert not any("--compile off" in line for line in shown(kernel=3_000))


def test_of_a_compiled_step_it_says_that_no_phases_are_seen() -> None:
    text = tables([FunctionEvent(0, "train_step", 0, 0, 10_000)], seconds=0.02, num_steps=1)
    assert "| rest of the step | 10.0 | 50% |" in text
    assert "compiled step are not seen; add --compile off" in text
