"""Checkpoints in orbax's open format. The only importer of orbax, and so of jax: late, and on the CPU."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import backbones.distributed as distributed
import backbones.tree as tree
from backbones.train_step import TrainState
from backbones.types import InputError


class Checkpoints:
    """The checkpoints of one run: rank 0 writes them, all ranks can read them.

    Each holds the whole `TrainState` as a flat dict from path (`params/head.weight`) to array, and the experiment.

    Args:
        folder: where they lie, one sub-folder a step; it exists.
        experiment: the run's configuration as plain JSON data; stored with every checkpoint.
        keep: how many of the latest to keep; the one with the best `top1` is kept besides.
    """

    def __init__(self, folder: Path, *, experiment: dict[str, Any], keep: int) -> None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the GPU's memory belongs to torch
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy

        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax remarks on every save that has no metrics
        self.folder = folder
        self._args = ocp.args
        self._experiment = experiment
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_names=("state", "experiment"),
            options=ocp.CheckpointManagerOptions(
                best_fn=_top1,
                preservation_policy=preservation_policy.AnyPreservationPolicy(
                    [
                        preservation_policy.LatestN(keep),
                        preservation_policy.BestN(n=1, get_metric_fn=_top1, keep_checkpoints_without_metrics=False),
                    ]
                ),
                read_only=not distributed.is_main(),
            ),
        )

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Write `state` under its step. Returns when the values are copied; the disk is written in the background."""
        if distributed.is_main():
            args = self._args.Composite(
                state=self._args.StandardSave(to_arrays(state)), experiment=self._args.JsonSave(self._experiment)
            )
            self._manager.save(state.step.item(), args=args, metrics=metrics or None)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, once pending ones are on the disk."""
        self._manager.wait_until_finished()
        return self._manager.latest_step()

    def restore(self, like: TrainState) -> TrainState:
        """The newest checkpoint, in the memory of `like`, which has the structure and devices that are wanted.

        Raises:
            InputError: there is no checkpoint, or it is one of another model or optimizer.
        """
        step = self.latest_step()
        if step is None:
            raise InputError(f"there is no checkpoint in {self.folder}; start again with another --run-dir")
        args = self._args.Composite(state=self._args.StandardRestore())
        return from_arrays(self._manager.restore(step, args=args).state, like)

    def close(self) -> None:
        """Wait until all is on the disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _top1(metrics: dict[str, float]) -> float:
    return metrics["top1"]


def to_arrays(state: TrainState) -> dict[str, np.ndarray]:
    """Path -> a copy of the leaf as a numpy array of the same dtype (bfloat16 through ml_dtypes)."""
    return {name: _to_array(leaf) for name, leaf in tree.named_leaves(state).items()}


def _to_array(leaf: Tensor) -> np.ndarray:
    leaf = leaf.detach().to("cpu", copy=True).contiguous()
    if leaf.dtype == torch.bfloat16:
        import ml_dtypes  # comes with jax

        return leaf.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return leaf.numpy()


def from_arrays(arrays: dict[str, np.ndarray], like: TrainState) -> TrainState:
    """Fill the memory of `like` from `arrays`, which must have its paths, shapes and dtypes, and return it.

    Raises:
        InputError: they differ; the message lists where.
    """
    leaves = tree.named_leaves(like)
    tensors = {name: _from_array(array) for name, array in arrays.items()}
    differences = []
    for name, leaf in leaves.items():
        got, wanted = _describe(tensors.get(name)), _describe(leaf)
        if got != wanted:
            differences.append(f"{name} is {got}, expected {wanted}")
    differences += [f"{name} is not expected" for name in tensors if name not in leaves]
    if differences:
        more = [f"and {len(differences) - 8} more"] if len(differences) > 8 else []
        raise InputError("\n  ".join(["the checkpoint is of another model or optimizer:", *differences[:8], *more]))
    for name, leaf in leaves.items():
        leaf.copy_(tensors[name])
    return like


def _describe(leaf: Tensor | None) -> str:
    return "missing" if leaf is None else f"{leaf.dtype} {list(leaf.shape)}".removeprefix("torch.")


def _from_array(array: np.ndarray) -> Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
