"""Files of weights: a dict of tensors, as torch.save or safetensors write it."""

import json
import pickle
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from backbones.errors import InputError

StateDict = dict[str, Tensor]


def read_state_dict(path: str | Path) -> StateDict:
    """Read the tensors in a file of `torch.save` or safetensors; no pickled code is run.

    Raises:
        InputError: the file is absent, damaged, or holds anything but a dict of tensors (or one as its "state_dict").
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: cannot be read as weights, it may be truncated ({reason})") from error
    state_dict = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state_dict, dict) or not all(isinstance(leaf, Tensor) for leaf in state_dict.values()):
        raise InputError(f"{path}: wanted a dict of tensors, as `torch.save(module.state_dict(), path)` writes it")
    return dict(state_dict)


def write_state_dict(path: str | Path, state_dict: StateDict, metadata: dict[str, Any] | None = None) -> None:
    """Write tensors with safetensors if the file name ends in `.safetensors`, else with `torch.save`.

    `metadata` is plain data about them. In a safetensors file each value is JSON; a file of `torch.save` then holds
    `{"state_dict": ..., "metadata": ...}`.
    """
    if Path(path).suffix == ".safetensors":
        safetensors.torch.save_file(
            state_dict, path, {name: json.dumps(each) for name, each in (metadata or {}).items()}
        )
    else:
        torch.save({"state_dict": state_dict, "metadata": metadata} if metadata else state_dict, path)
