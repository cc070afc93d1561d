"""Reading an exported file in another process, which imports none of our code."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from backbones.errors import InputError
from backbones.models.state_dict import StateDict
from backbones.run.export.formats import Lines

LOGITS = """
import sys

import numpy

{imports}

path, inputs, outputs = sys.argv[1:]
{load}
parts = []
for images in numpy.split(numpy.load(inputs), [1]):  # one image, and all others
    parts += [numpy.asarray({result})] if len(images) else []
numpy.save(outputs, numpy.concatenate(parts))
assert "backbones" not in sys.modules
"""

WEIGHTS = """
import sys

{imports}

path, outputs = sys.argv[1:]
{load}
assert "backbones" not in sys.modules

import torch

torch.save({result}, outputs)
"""


def read_tensors(path: Path, lines: Lines) -> StateDict:
    """The tensors that `lines` read from a file.

    Raises:
        InputError: they fail.
    """
    with TemporaryDirectory() as folder:
        outputs = Path(folder, "outputs.pt")
        _run(WEIGHTS, lines, path, outputs)
        return torch.load(outputs, weights_only=True)


def compute_logits(path: Path, lines: Lines, images: Tensor) -> Tensor:
    """The logits [N, K] that `lines` make of images [N, C, H, W] uint8: of the first one alone, and of all others.

    Raises:
        InputError: they fail.
    """
    with TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "inputs.npy"), Path(folder, "outputs.npy")
        np.save(inputs, images.numpy())
        _run(LOGITS, lines, path, inputs, outputs)
        return torch.from_numpy(np.load(outputs))


def _run(program: str, lines: Lines, *args: Path) -> None:
    code = program.format(**lines._asdict())
    # -P: not the modules of the working directory
    done = subprocess.run([sys.executable, "-P", "-c", code, *args], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1].strip()
        raise InputError(f"the exported file could not be read again: {reason}")
