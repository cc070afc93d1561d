"""Files of weights: a dict of tensors, as torch.save or safetensors write it."""

import argparse
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from backbones.errors import InputError, first_line

StateDict = dict[str, Tensor]

WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "net", "params")
"""Keys under which training scripts keep the weights, in the order in which they are looked for: an average first."""

_SCALAR = np.float64(0).__reduce__()[0]

HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(code)) for code in "?ilefd"),
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),  # as numpy 1 called it
]
"""What training scripts keep beside the weights: their arguments, and an accuracy or an epoch as a number of numpy."""


def read_state_dict(path: str | Path) -> StateDict:
    """Read the tensors in a file of `torch.save` or safetensors; no pickled code is run.

    They may be inside of a dict of other things, under one of the keys of `WRAPPERS`.

    Raises:
        InputError: the file is absent, damaged, needs pickled code, or holds no dict of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise _unreadable(path, error) from error
        raise InputError(
            f"{path} holds a pickled {found[1]}, and reading that would run code of the file. Where you trust it, read "
            "it by torch.load(FILE, weights_only=False), and write its tensors alone, a state dict, into another file"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise _unreadable(path, error) from error
    while isinstance(content, dict) and (key := next((key for key in WRAPPERS if _has_dict(content, key)), None)):
        content = content[key]
    if not isinstance(content, dict) or not all(isinstance(leaf, Tensor) for leaf in content.values()) or not content:
        raise InputError(f"{path}: wanted a dict of tensors, as `torch.save(module.state_dict(), path)` writes it")
    return dict(content)


def _has_dict(content: dict[Any, Any], key: str) -> bool:
    return isinstance(content.get(key), dict) and bool(content[key])


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = first_line(error)
    return InputError(f"{path}: cannot be read as weights, it may be truncated ({reason})")


def write_state_dict(path: str | Path, state_dict: StateDict, metadata: dict[str, Any] | None = None) -> None:
    """Write tensors with safetensors if the file name ends in `.safetensors`, else with `torch.save`.

    `metadata` is plain data about them. In a safetensors file each value is JSON; a file of `torch.save` then holds
    `{"state_dict": ..., "metadata": ...}`.
    """
    if Path(path).suffix == ".safetensors":
        texts = {name: json.dumps(each) for name, each in (metadata or {}).items()}
        Path(path).write_bytes(safetensors.torch.save(state_dict, texts))  # `save_file` makes files that no others read
    else:
        torch.save({"state_dict": state_dict, "metadata": metadata} if metadata else state_dict, path)
