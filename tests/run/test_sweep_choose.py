import dataclasses
import io
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers.resumed import few_digits
from helpers.runs import ROOT
from helpers.sweeps import VIT, sweep_over

import backbones.machine as machine
import backbones.run.sweep.choose as choose
from backbones.component import use
from backbones.data import Dataset
from backbones.run.sweep.jobs import default_workers, share_of_machine
from backbones.run.sweep.members import Plan, write_sweep
from backbones.torch_settings import torch_settings_kept
from backbones.types import CPU

CASES = {
    # steps, seconds of a step: alone, alone in one thread, vmapped, beside others; seconds to start; the fastest
    "vmap": (1000, 0.1, 0.19, 0.2, None, 3.5, "vmap"),
    "vmap is slower": (1000, 0.1, 0.2, 0.41, None, 3.5, "sequence"),
    "no vmap": (1000, 0.1, 0.19, None, 0.2, 3.5, "sequence"),
    "vmap takes too long to measure": (150, 0.1, 0.19, 0.1, None, 3.5, "sequence"),
    "processes": (1000, 0.1, 0.14, 0.39, 0.15, 3.5, "processes"),
    "processes disturb each other": (1000, 0.1, 0.14, 0.41, 0.2, 3.5, "sequence"),
    "starting takes too long": (100, 0.1, 0.1, None, None, 10.5, "sequence"),
    "starting takes too long to measure": (100, 0.1, 0.1, None, None, 3.5, "processes"),
    "a run is too short": (99, 9.0, None, 0.1, None, 0.0, "sequence"),
    "all is too short": (100, 0.039, None, 0.01, None, 0.0, "sequence"),
}


def test_processes_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "num_cores", lambda: 16)
    assert [default_workers(num_members, VIT) for num_members in (3, 20)] == [3, 8]
    assert share_of_machine(0, 8)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert [share_of_machine(slot, 3)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["4", "5", "4"]


@pytest.mark.parametrize("case", CASES)
def test_the_fastest_is_chosen(case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    steps, alone, in_one_thread, vmapped, beside, startup, fastest = CASES[case]
    threads = torch.get_num_threads()
    together: list[int] = []

    def seconds_of(step: object) -> float:
        return in_one_thread if torch.get_num_threads() == 1 else alone

    def beside_others(*args: object) -> float:
        together.append(1)
        return beside

    monkeypatch.setattr(machine, "num_cores", lambda: 2)
    monkeypatch.setattr(choose, "make_step", lambda *args: None)
    monkeypatch.setattr(choose, "seconds_of", seconds_of)
    monkeypatch.setattr(choose, "seconds_of_vmapped", lambda *args, **options: vmapped)
    monkeypatch.setattr(choose, "seconds_together", beside_others)
    monkeypatch.setattr("time.process_time", lambda: startup)
    sweep = sweep_over(dataclasses.replace(VIT, steps=steps, threads=2), [0.1, 0.2], [0, 1])
    assert choose.choose_how(sweep, Path("nowhere"), workers=2) == fastest
    assert f"auto: {fastest}; " in capsys.readouterr().out and torch.get_num_threads() == threads
    assert bool(together) == (beside is not None)
    if fastest == "vmap":
        assert choose.choose_how(sweep, Path("nowhere"), workers=2, may_vmap=False) != "vmap"


def test_what_is_not_measured_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(choose, "make_step", lambda *args: None)
    monkeypatch.setattr(choose, "seconds_of", lambda step: 10.0)
    for steps, rates, what in ((99, [0.1, 0.2], "runs of 99 steps"), (100, [0.1], "one member")):
        sweep = sweep_over(dataclasses.replace(VIT, steps=steps), rates, [0])
        assert choose.choose_how(sweep, Path("nowhere"), workers=1) == "sequence"
        assert capsys.readouterr().out == f"auto: sequence; other ways are not measured for {what}\n"


def test_each_run_compiles(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 30.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    monkeypatch.setattr(choose, "make_step", lambda *args: lambda: None)
    monkeypatch.setattr(choose, "seconds_of", lambda step: 0.1)
    sweep = sweep_over(dataclasses.replace(VIT, steps=100, compile="on"), [0.1, 0.2], [0, 1])
    assert choose.choose_how(sweep, Path("nowhere"), workers=1, may_vmap=False) == "sequence"
    assert "sequence 164 s\n" in capsys.readouterr().out  # 4 times 1 for files, 30 to compile, and 10 of steps


def test_halving_is_counted_and_not_vmapped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choose, "make_step", lambda *args: None)
    monkeypatch.setattr(choose, "seconds_of", lambda step: 0.1)
    sweep = sweep_over(dataclasses.replace(VIT, steps=400), [0.1, 0.2], [0, 1], halving=2)
    assert choose.choose_how(sweep, Path("nowhere"), workers=1) == "sequence"
    assert "sequence 87 s\n" in capsys.readouterr().out  # 4 runs, 2 of them, 1 of those


def test_a_process_that_ends_before_it_is_asked_for_its_time_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that was killed because memory ran out, while another was still starting."""

    class Ended:
        def __init__(self, *args: object, **options: object) -> None:
            self.stdout, self.stdin = io.StringIO("\n"), mock.Mock(flush=mock.Mock(side_effect=BrokenPipeError))
            self.communicate = self.kill = lambda: None

    monkeypatch.setattr(choose.subprocess, "Popen", Ended)
    assert choose.seconds_together(sweep_over(VIT, [0.1, 0.2], [0]), Path("nowhere"), 2) is None


@pytest.mark.slow
def test_steps_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.setattr(choose, "SECONDS", 0.0)
    sweep = sweep_over(VIT, [0.1, 0.2], [0])
    dataset = VIT.data.make(device=torch.device("cpu"))
    assert 0 < choose.seconds_of(choose.make_step(VIT, dataset)) < 10
    assert 0 < choose.seconds_of_vmapped(sweep, dataset, CPU, memory=0) < 10
    assert choose.seconds_of_vmapped(sweep, dataset, CPU, memory=1e15) is None
    assert choose.seconds_of_vmapped(sweep, dataset, torch.device("cuda"), memory=1e15) is not None
    dropout = dataclasses.replace(VIT, model=VIT.model.replace(dropout=0.1))
    assert choose.seconds_of_vmapped(sweep_over(dropout, [0.1], [0, 1]), dataset, CPU, memory=0) is None
    smoothed = sweep._replace(
        members=[
            m._replace(experiment=dataclasses.replace(VIT, label_smoothing=0.1 * i))
            for i, m in enumerate(sweep.members)
        ]
    )
    assert choose.seconds_of_vmapped(smoothed, dataset, CPU, memory=0) is None
    write_sweep(tmp_path, sweep, Plan())
    assert 0 < choose.seconds_together(sweep, tmp_path, 1) < 10


def talkative(device: torch.device = CPU) -> Dataset:
    """Data that prints, as one does whose classes have no test images."""
    print("note: ...")
    return few_digits(device)


@pytest.mark.slow
def test_what_data_sets_print_does_not_disturb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    sweep = sweep_over(dataclasses.replace(VIT, data=use(talkative)), [0.1], [0])
    write_sweep(tmp_path, sweep, Plan())
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    capsys.readouterr()
    with torch_settings_kept():
        choose.main(str(tmp_path), sweep.members[0].name)
    ready, seconds, end = capsys.readouterr().out.split("\n")
    assert ready == end == "" and 0 < float(seconds) < 10
