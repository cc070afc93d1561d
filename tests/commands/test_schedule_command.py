from pathlib import Path

import pytest

from backbones.commands.schedule import main
from backbones.errors import InputError
from backbones.optim import SCHEDULES


@pytest.mark.parametrize("name", SCHEDULES)
def test_plots_every_schedule(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--schedule", name, "--steps", "20", "--plot", str(tmp_path / "out.png")])
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert f"drew 20 steps of {name} into " in capsys.readouterr().out


def test_fields_of_the_chosen_schedule_are_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--schedule", "multi-step", "--schedule.milestones", "0.3", "0.6", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--schedule.milestones" in shown and "(default: 0.5 0.75)" in shown and "--schedule.floor" not in shown
    assert "--schedule NAME: constant, linear" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schedule", "cosin"], "unknown schedule 'cosin'; did you mean cosine"),
        (["--plot", "nowhere/out.png"], "cannot write nowhere/out.png"),
        (["--plot", "out.xyz"], "cannot write out.xyz"),
        (["--plot", "out"], "wanted a file name with a suffix"),
    ],
)
def test_mistakes_are_one_message(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(arguments)


def test_an_option_out_of_its_range(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in ((["--schedule.floor", "-1"], "floor is -1.0"), (["--steps", "0"], "--steps is 0")):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert f"{message}; it must be" in shown
