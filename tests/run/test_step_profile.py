import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from backbones.errors import InputError
from backbones.experiment import Experiment
from backbones.run.run import run
from backbones.run.step_profile import PHASES, parse_steps


def test_steps() -> None:
    assert parse_steps("5:8") == range(5, 8)


@pytest.mark.parametrize("text", ["5", "5:", ":8", "8:5", "5:5", "0:3", "-1:3", "a:b", ""])
def test_what_is_no_range_of_steps(text: str) -> None:
    with pytest.raises(InputError, match="A:B"):
        parse_steps(text)


def test_where_the_time_went(experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    experiment = replace(experiment, steps=6, accumulate=2)
    with pytest.raises(InputError, match="steps 1 to 6"):
        run(experiment, run_dir=tmp_path / "outside", profile=range(5, 8))
    plain = run(experiment, run_dir=tmp_path / "plain")
    profiled = run(experiment, run_dir=tmp_path / "profiled", profile=range(3, 6))
    assert profiled["params_sha256"] == plain["params_sha256"]
    trace = json.loads((tmp_path / "profiled" / "profile-3-6.json").read_text())
    names = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    assert names.count("train_step") == names.count("update") == 3 and names.count("backward") == 6

    rows = {
        row[0]: [float(cell.rstrip("%") or "nan") for cell in row[1:]]
        for line in capsys.readouterr().out.splitlines()
        if len(row := [cell.strip() for cell in line.strip("|").split("|")]) > 3 and re.match(r"\d", row[1])
    }
    phases = [*PHASES, "rest of the step", "between steps"]
    assert sum(rows[name][1] for name in phases) == pytest.approx(100, abs=4)  # each is rounded
    assert all(rows[name][0] >= 0 for name in phases)
    forward, backward, *_ = rows["model"]
    assert 0 < forward <= rows["forward"][0] and 0 < backward <= rows["backward"][0]
    parts = [values for name, values in rows.items() if name.count(".") == 1]
    assert len(parts) >= 2
    for i in (0, 1):
        assert sum(values[i] for values in parts) <= rows["model"][i] + 0.1 * len(parts)
