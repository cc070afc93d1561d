"""What a forward pass needs of a checkpoint, and nothing else: the weights that are evaluated."""

from pathlib import Path

from torch import Tensor

import backbones.tree as tree
from backbones import optim
from backbones.checkpoint.arrays import to_tensor
from backbones.checkpoint.find import find_checkpoint
from backbones.checkpoint.folder import Checkpoint, read_checkpoint
from backbones.models.convert import read_state_dict
from backbones.train_step import TrainState


def describe_average(state: TrainState) -> dict[str, str] | None:
    """Which node of the state holds the average that is evaluated, so that it is found without the optimizer."""
    averages = tree.find_named(state, tuple(optim.AVERAGES.values()))
    if not averages:
        return None
    path, node = list(averages.items())[-1]
    return {"type": type(node).__name__, "path": path}


def weights_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Name -> tensor of what a forward pass needs: parameters, or their average if there is one, and `model_state`."""

    def under(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): to_tensor(array)
            for name, array in checkpoint.arrays.items()
            if name.startswith(prefix)
        }

    params, average = under("params/"), checkpoint.manifest.average
    if average is not None:
        node_type, leaves = optim.AVERAGES[average["type"]], under(average["path"] + "/")
        fields = {field: leaves.get(field, under(f"{average['path']}/{field}/")) for field in node_type._fields}
        params = optim.evaluation_params(node_type(**fields), params)
    return {**params, **under("model_state/")}


def read_weights(path: str) -> dict[str, Tensor]:
    """Name -> tensor of `params` and `model_state`, from a run folder (its latest checkpoint), a checkpoint, or a file.

    Raises:
        InputError: there is no such thing, or it is damaged.
    """
    if Path(path).is_file():
        return read_state_dict(path)
    return weights_of(read_checkpoint(find_checkpoint(Path(path))))
