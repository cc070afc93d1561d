"""`backbones export`, on a real run."""

import inspect
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import get_args

import pytest
import safetensors
import torch
from conftest import AVERAGED_AIRBENCH
from helpers.runs import ROOT

import backbones.commands as commands
import backbones.tree as tree
from backbones.commands.export import export
from backbones.data import DataInfo, digits
from backbones.experiment import Experiment
from backbones.models.state_dict import read_state_dict
from backbones.optim import evaluation_params
from backbones.run.analysis.model_evaluation import load_predictor
from backbones.run.checkpoint import load_arrays, read_checkpoint, saved_weights
from backbones.run.export.formats import FORMATS
from backbones.types import CPU

DOCS = (ROOT / "docs" / "export.md").read_text()


def test_every_format_is_on_the_command_line() -> None:
    assert get_args(inspect.signature(export).parameters["format"].annotation) == tuple(FORMATS)


@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_weights(format: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The average of the parameters, with the model state; read by the lines that are printed."""
    out = tmp_path / "new" / ("w.safetensors" if format == "safetensors" else "w.pt")
    commands.run("export", str(finished), "--format", format, "--out", str(out), "--license", "CC0")
    assert [*out.parent.iterdir()] == [out]
    shown = capsys.readouterr().out
    assert f"wrote {finished}/checkpoints/4 to {out} (7.9 MB)\n" in shown and "every tensor is equal" in shown
    code = textwrap.dedent(shown.partition("\n\n")[2])
    assert code.replace(str(out), "PATH").replace("'", '"') in re.sub(r'"runs/[\w/.-]+"', '"PATH"', DOCS)
    names: dict = {}
    exec(code, names)
    weights = names["weights"]
    if format == "safetensors":
        with safetensors.safe_open(out, "numpy") as file:
            metadata = {name: json.loads(value) for name, value in file.metadata().items()}
    else:
        metadata = torch.load(out, weights_only=True)["metadata"]
    assert (metadata["license"], metadata["step"], metadata["model"]) == ("CC0", 4, "airbench")
    assert DataInfo.from_json({name: metadata[name] for name in DataInfo._fields}) == digits().info
    checkpoint = read_checkpoint(finished / "checkpoints" / "4")
    state = load_arrays(AVERAGED_AIRBENCH.make().state, checkpoint.arrays)
    averaged = evaluation_params(state.opt_state, state.params)
    assert not torch.equal(weights["head.weight"], state.params["head.weight"])
    wanted = tree.sha256({**averaged, **saved_weights(checkpoint.arrays)[1]})
    assert tree.sha256(weights) == tree.sha256(read_state_dict(out)) == wanted


@pytest.mark.slow
def test_a_program(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines that are printed give the logits of the checkpoint that was named."""
    out = tmp_path / "model.pt2"
    commands.run("export", str(finished), "--format", "pt2", "--checkpoint", "2", "--out", str(out))
    shown = capsys.readouterr().out
    assert f"wrote {finished}/checkpoints/2 to {out} (" in shown and "logits of 100 images differ by at mo" in shown
    code = textwrap.dedent(shown.partition("\n\n")[2])
    assert code.replace("'", '"') in DOCS.replace("runs/digits-vit-tiny/model.pt2", str(out))
    names: dict = {"images": digits().test.read(torch.arange(3), torch.arange(3)).numpy()}
    exec(code, names)
    checkpoint = read_checkpoint(finished / "checkpoints" / "2")
    predict = load_predictor(checkpoint, Experiment.from_json(checkpoint.manifest.experiment), CPU)
    torch.testing.assert_close(names["logits"], predict(torch.from_numpy(names["images"])), rtol=0, atol=1e-5)
    files = {"metadata.json": ""}
    torch.export.load(out, extra_files=files)
    metadata = json.loads(files["metadata.json"])
    assert (metadata["step"], metadata["class_names"], metadata["license"]) == (2, list("0123456789"), None)

    monkeypatch.setattr(sys, "argv", ["backbones", "export", str(finished), "--format", "pt2", "--out", str(out)])
    with pytest.raises(SystemExit, match=f"^error: {out} exists already; choose another --out$"):
        commands.main()
