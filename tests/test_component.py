import json
import pickle
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from backbones.augment import AUGMENTS
from backbones.commands.train import FUNCTIONS
from backbones.component import Use, import_object, import_path, options_of, use
from backbones.data import DATASETS
from backbones.errors import InputError
from backbones.losses import LOSSES
from backbones.models import LIBRARIES, MODELS
from backbones.models.vit import vit_small, vit_tiny
from backbones.optim import OPTIMIZERS, adam
from backbones.optim.schedule import SCHEDULES, cosine, multi_step
from experiments import EXPERIMENTS


def triple(num_classes: int, *, b: int = 2, c: str = "x") -> tuple[int, int, str]:
    """Doc.

    Args:
        num_classes: given.
        b: chosen.
        c: chosen too.
    """
    return num_classes, b, c


def needs_a_value(width: int) -> int:
    """Doc."""
    return width


def with_an_object(kind: type = int) -> None:
    """Doc."""


def test_make_calls_the_function_with_what_is_given_and_the_options() -> None:
    component = use(triple, c="y")
    assert component.make(num_classes=1, image_shape=(3, 2, 2)) == (1, 2, "y")
    assert component.replace(b=5).make(num_classes=1) == (1, 5, "y")
    assert repr(component) == "use(triple, c='y')" and component.name == "triple"
    assert component.values == {"b": 2, "c": "y"}


def test_equal_where_every_option_is() -> None:
    assert use(triple) == use(triple, b=2) != use(triple, b=3)
    assert hash(use(triple)) == hash(use(triple, b=2))
    assert use(adam) != use(cosine)


def test_mistakes_are_found_at_once() -> None:
    with pytest.raises(InputError, match=r"unknown option of adam 'lrr'; did you mean lr\?"):
        use(adam, lrr=1e-3)
    with pytest.raises(InputError, match=r"adam\.b1 is 1.0; it must be at least 0 and below 1"):
        use(adam, b1=1.0)
    with pytest.raises(InputError, match="num_classes of triple is given by the experiment; rename that parameter"):
        use(triple, num_classes=3)
    with pytest.raises(InputError, match="needs-a-value needs a value for width"):
        use(needs_a_value).make()
    for value in (len, {"a": {1, 2}}, (1, object()), {2: "b"}):
        with pytest.raises(InputError, match=r"triple\.c is .*; it must be a number, a string, a bool, None, or a"):
            use(triple, c=value)
    with pytest.raises(InputError, match=r"with-an-object\.kind is <class 'int'>; it must be a number, a string"):
        use(with_an_object)
    for value in ({"a": 1}, EXPERIMENTS["digits-vit-tiny"]):
        with pytest.raises(InputError, match="is not a function; wanted one that makes a part of an experiment"):
            Use(value)


@pytest.mark.parametrize("function", [triple, vit_small, vit_tiny, adam, cosine])
def test_functions_are_found_again_by_their_import_path(function) -> None:
    path = import_path(function)
    assert import_object(path) is function
    assert Use.from_json(json.loads(json.dumps(use(function).to_json()))) == use(function)


def test_what_no_module_holds_cannot_be_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blocked", None)  # as Python lets one block an import
    with pytest.raises(InputError, match="is not at the top level of a module"):
        import_path(lambda: None)
    with pytest.raises(InputError, match="is not at the top level of a module"):
        import_path(partial(triple, b=7))


def test_a_builtin_has_no_options() -> None:
    with pytest.raises(InputError, match="has no signature; call it in a function of your own"):
        use(torch.relu)


def test_a_missing_module_or_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(InputError, match=r"cannot import nowhere:f: there is no module 'nowhere'; run from the folder"):
        import_object("nowhere:f")
    Path("somewhere.py").write_text("def g(): ...\n")
    with pytest.raises(InputError, match=r"cannot import somewhere:f: .*somewhere\.py has no 'f'"):
        import_object("somewhere:f")
    assert import_object("somewhere:g").__name__ == "g"
    Path("a_folder").mkdir()
    for name in ("time", "a_folder"):  # which have no file
        with pytest.raises(InputError, match=f"cannot import {name}:f: {name} has no 'f'"):
            import_object(f"{name}:f")
    for path in ("./somewhere.py:g", ":g", "some/where:g", "somewhere.:g"):
        with pytest.raises(InputError, match=r"is not a module name; for my/file\.py write my\.file"):
            import_object(path)
    Path("broken.py").write_text("import does_not_exist\n")
    with pytest.raises(ModuleNotFoundError):  # a bug in that file: its traceback is wanted
        import_object("broken:f")


def test_options_of_a_file_with_postponed_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are checked, and shown, as others are."""
    (tmp_path / "postponed.py").write_text(
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n"
        "from backbones.ranges import Count\nif TYPE_CHECKING:\n    from nowhere import Schedule\n"
        "def slow(*, width: Count = 3):\n    pass\ndef slower(schedule: Schedule, *, lr: float = 0.5):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    slow = import_object("postponed:slow")
    assert options_of(slow)["width"].help.endswith("1 or more")
    with pytest.raises(InputError, match="width is 0; it must be 1 or more"):
        use(slow, width=0)
    assert options_of(import_object("postponed:slower"))["lr"].default == 0.5


def test_tuples_come_back_from_json() -> None:
    schedule = use(multi_step, milestones=(0.3, 0.6))
    restored = Use.from_json(json.loads(json.dumps(schedule.to_json())))
    assert restored == schedule and restored.values["milestones"] == (0.3, 0.6)


def test_options_have_help_with_their_ranges() -> None:
    options = options_of(adam)
    assert list(options) == ["lr", "b1", "b2", "eps", "weight_decay"]
    assert options["b1"].help.endswith("; at least 0 and below 1") and options["b1"].default == 0.9


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_every_option_has_a_default_and_help(kind: str) -> None:
    for name, function in FUNCTIONS[kind].items():
        assert use(function).name == name
        for option, described in options_of(function).items():
            assert described.default is not described.annotation, option
            assert described.help.partition(";")[0], f"{name}.{option} has no help"


def test_all_tables_are_on_the_command_line() -> None:
    assert list(FUNCTIONS.values()) == [DATASETS, AUGMENTS, {**MODELS, **LIBRARIES}, OPTIMIZERS, SCHEDULES, LOSSES]


def test_pickled_in_another_process_it_is_the_same() -> None:
    component = use(vit_tiny, width=32)
    copied = pickle.loads(pickle.dumps(component))
    assert copied == component and copied.name == "vit-tiny" and copied.function is component.function


def test_a_model_of_a_library_is_called_by_its_architecture() -> None:
    assert use(LIBRARIES["timm"], architecture="resnet10t").label == "resnet10t"
    assert use(MODELS["resnet18"]).label == "resnet18"
