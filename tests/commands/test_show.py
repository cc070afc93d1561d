import json

import pytest

from backbones.augment import crop_flip
from backbones.commands.show import list_experiments, show, to_python
from backbones.commands.train import main
from backbones.component import use
from backbones.experiment import Experiment
from experiments import CLAIMS, EXPERIMENTS, read_claims
from experiments.digits import digits_vit_tiny


def digits(*, size: int = 3) -> None:
    """A data set whose name is taken by another function."""


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_python_and_json_are_the_experiment(name: str) -> None:
    experiment = EXPERIMENTS[name]
    variables: dict = {}
    exec(to_python(experiment), variables)
    assert variables[name.replace("-", "_")] == experiment
    values = json.loads(show(experiment).removeprefix(to_python(experiment)))
    assert Experiment.from_json(values) == experiment


def test_two_functions_of_one_name() -> None:
    name = "1st try"
    experiment = Experiment(
        name=name, data=digits_vit_tiny.data, augment=use(crop_flip), model=use(digits, size=4), optim=use(digits),
        steps=3, batch_size=2,
    )  # fmt: skip
    text, variables = to_python(experiment), {}
    assert "import digits as digits_of_model\n" in text and "use(digits_of_model, size=4)" in text
    exec(text, variables)
    assert variables["_1st_try"] == experiment


def test_the_command_line_shows_what_it_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (
        ["--show", "digits-resnet18", "--optim.lr", "0.5"],
        ["digits-resnet18", "--optim.lr", "0.5", "--show"],
    ):
        main(args, EXPERIMENTS)
        assert "optim=use(sgd, lr=0.5)" in capsys.readouterr().out


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--list"], EXPERIMENTS, CLAIMS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(EXPERIMENTS)
    shown = next(line for line in lines if line.startswith("digits-vit-tiny "))
    assert CLAIMS["digits-vit-tiny"] in shown and "%" in shown
    assert list_experiments({"a": digits_vit_tiny}, {}) == "a  not measured yet"


def test_claims_are_lines_of_the_docstring() -> None:
    text = "A name:\n\none    5 min    98 %\ntwo is a word\n\nelse   3\n"
    assert read_claims(text, ["one", "two", "three"]) == {"one": "5 min 98 %"}
    assert read_claims(None, ["one"]) == {}
