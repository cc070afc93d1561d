"""`backbones checkpoint show | diff | verify`: inspect checkpoints."""

import numpy as np
import tyro
from torch import Tensor
from tqdm import tqdm

import backbones.tree as tree
from backbones.commands.options import CheckpointName, RunPath
from backbones.run.checkpoint.arrays import to_tensor
from backbones.run.checkpoint.find import best_step, find_checkpoint, list_steps, parse_saved, read_manifests
from backbones.run.checkpoint.folder import Checkpoint, CorruptCheckpoint, read_checkpoint


def show(run: RunPath, /, *, checkpoint: CheckpointName = "latest") -> None:
    """Print the contents of a checkpoint: metrics, the size and hash of each part, and every leaf.

    The hash of `params` is the `params_sha256` of `result.json`.

    Args:
        run: a run folder, or one checkpoint in it.
        checkpoint: which checkpoint of the run.
    """
    path = find_checkpoint(run, parse_saved(checkpoint))
    content = read_checkpoint(path)
    manifests = read_manifests(path.parent)
    best = best_step(manifests)
    steps = ", ".join(f"{step} (best)" if step == best else str(step) for step in manifests)
    print(f"{path}: {_megabytes(content)} MB; steps saved: {steps}")
    for name, value in content.manifest.metrics.items():
        print(f"{name:12s} {value:.6g}")
    print("\npart         leaves     elements           bytes  sha256")
    parts: dict[str, dict[str, Tensor]] = {}
    for name, array in content.arrays.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = to_tensor(array)
    for part, leaves in parts.items():
        sizes = f"{len(leaves):6d} {tree.size(leaves):12,d} {sum(leaf.nbytes for leaf in leaves.values()):15,d}"
        print(f"{part:12s} {sizes}  {tree.sha256(leaves)}")
    width = max(map(len, content.arrays))
    print(f"\n{'leaf':{width}s} {'dtype':8s} {'bytes':>12s}  sha256        shape")
    for name, leaf in content.manifest.leaves.items():
        print(f"{name:{width}s} {leaf.dtype:8s} {content.arrays[name].nbytes:12,d}  {leaf.sha256[:12]}  {leaf.shape}")


def _megabytes(checkpoint: Checkpoint) -> str:
    return f"{sum(array.nbytes for array in checkpoint.arrays.values()) / 1e6:,.1f}"


def diff(a: RunPath, b: RunPath, /) -> bool:
    """Print the leaves in which two checkpoints differ, and by how much; the exit code is 1 if there are any.

    Args:
        a: a run folder, which stands for its latest checkpoint, or one checkpoint in it.
        b: another.
    """
    one, other = (read_checkpoint(find_checkpoint(path)) for path in (a, b))
    names = [*one.arrays, *(name for name in other.arrays if name not in one.arrays)]
    different = [name for name in names if one.manifest.leaves.get(name) != other.manifest.leaves.get(name)]
    print(f"{one.path} and {other.path}: {len(different)} of {len(names)} leaves differ")
    width = max(map(len, names))
    for name in different:
        print(f"{name:{width}s} {describe_difference(one.arrays.get(name), other.arrays.get(name))}")
    return not different


def describe_difference(a: np.ndarray | None, b: np.ndarray | None) -> str:
    """How two leaves differ, in words."""
    if a is None or b is None:
        return "only in the second" if a is None else "only in the first"
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{a.dtype.name} {list(a.shape)} and {b.dtype.name} {list(b.shape)}"
    if a.ndim == 0:
        return f"{a.item()} and {b.item()}"
    share = np.mean(a != b)
    a, b = a.astype(np.float64), b.astype(np.float64)
    relative = np.linalg.norm(a - b) / max(np.linalg.norm(a), np.finfo(np.float64).tiny)
    return f"{share:7.2%} of the elements, by at most {np.abs(a - b).max():.3g}; relative norm {relative:.3g}"


def verify(run: RunPath, /) -> bool:
    """Compare every file and leaf of a checkpoint, or of all checkpoints of a run, with the stored hashes.

    The exit code is 1 if any is corrupt.

    Args:
        run: a run folder, or one checkpoint in it.
    """
    first = find_checkpoint(run)
    paths = [first] if run == first else [first.parent / str(step) for step in list_steps(first.parent)]
    good = True
    for path in tqdm(paths, unit="checkpoint", leave=False, disable=None):
        try:
            content = read_checkpoint(path)
            tqdm.write(f"{path} is intact: {len(content.arrays)} leaves, {_megabytes(content)} MB")
        except CorruptCheckpoint as error:
            if not path.exists():  # a run that is still training has removed it
                continue
            good = False
            tqdm.write(str(error))
    return good


def main(args: list[str]) -> bool | None:
    """Run a command line; False if checkpoints differ, or one is corrupt."""
    return tyro.extras.subcommand_cli_from_dict(
        {"show": show, "diff": diff, "verify": verify},
        prog="backbones checkpoint",
        description="Inspect checkpoints.",
        args=args,
    )
