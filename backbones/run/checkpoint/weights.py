"""What a forward pass needs of a checkpoint, and nothing else: the weights that are evaluated."""

from pathlib import Path

from torch import Tensor

import backbones.distributed as distributed
from backbones.models.state_dict import read_state_dict
from backbones.run.checkpoint.arrays import EVALUATED, to_tensor
from backbones.run.checkpoint.find import find_checkpoint
from backbones.run.checkpoint.folder import Checkpoint, read_checkpoint
from backbones.types import Weights


def weights_of(checkpoint: Checkpoint) -> Weights:
    """Parameters, or their average if the run keeps one, and the model state that belongs to them."""

    def under(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): to_tensor(array)
            for name, array in checkpoint.arrays.items()
            if name.startswith(prefix)
        }

    average = under(f"{EVALUATED}/0/")
    return (average, under(f"{EVALUATED}/1/")) if average else (under("params/"), under("model_state/"))


def read_weights(path: str) -> dict[str, Tensor]:
    """Name -> tensor of `params` and `model_state`, from a run folder (its latest checkpoint), a checkpoint, or a file.

    Rank 0 finds it, and all ranks read it.

    Raises:
        InputError: there is no such thing, or it is damaged.
    """

    def find() -> Path:
        found = Path(path).expanduser()
        return found if found.is_file() else find_checkpoint(found)

    found = distributed.on_main(find)
    if found.is_file():
        return read_state_dict(found)
    params, model_state = weights_of(read_checkpoint(found))
    return {**params, **model_state}
