"""`backbones checkpoint show | diff | verify | export`: inspect checkpoints and export their weights."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from torch import Tensor
from tqdm import tqdm
from tyro.conf import Positional

import backbones.tree as tree
from backbones.errors import InputError
from backbones.models.state_dict import write_state_dict
from backbones.run.checkpoint.arrays import to_tensor
from backbones.run.checkpoint.find import best_step, find_checkpoint, list_steps, parse_which
from backbones.run.checkpoint.folder import Checkpoint, CorruptCheckpoint, read_checkpoint
from backbones.run.checkpoint.weights import weights_of

Run = Annotated[Positional[Path], tyro.conf.arg(metavar="RUN", help="A run folder, or one of its checkpoints.")]

Which = Annotated[str, tyro.conf.arg(metavar="latest|best|STEP", help="Which checkpoint of the run.")]

Out = Annotated[
    Path | None, tyro.conf.arg(help="A new file; None for weights.safetensors or weights.pt in the folder.")
]


def show(run: Run, /, *, checkpoint: Which = "latest") -> None:
    """Print the contents of a checkpoint: metrics, the size and hash of each part, and every leaf.

    The hash of `params` is the `params_sha256` of `result.json`.
    """
    path = find_checkpoint(run, parse_which(checkpoint))
    content = read_checkpoint(path)
    steps, best = list_steps(path.parent), best_step(path.parent)
    print(f"{path}: {_megabytes(content)} MB; steps saved: {', '.join(_mark(step, best) for step in steps)}")
    for name, value in content.manifest.metrics.items():
        print(f"{name:12s} {value:.6g}")
    print("\npart         leaves     elements           bytes  sha256")
    for part, leaves in _parts(content).items():
        sizes = f"{len(leaves):6d} {tree.size(leaves):12,d} {sum(leaf.nbytes for leaf in leaves.values()):15,d}"
        print(f"{part:12s} {sizes}  {tree.sha256(leaves)}")
    width = max(len(name) for name in content.arrays)
    print(f"\n{'leaf':{width}s} {'dtype':8s} {'bytes':>12s}  sha256        shape")
    for name, leaf in content.manifest.leaves.items():
        print(f"{name:{width}s} {leaf.dtype:8s} {content.arrays[name].nbytes:12,d}  {leaf.sha256[:12]}  {leaf.shape}")


def _mark(step: int, best: int | None) -> str:
    return f"{step} (best)" if step == best else str(step)


def _megabytes(checkpoint: Checkpoint) -> str:
    return f"{sum(array.nbytes for array in checkpoint.arrays.values()) / 1e6:,.1f}"


def _parts(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for path, array in checkpoint.arrays.items():
        part, _, name = path.partition("/")
        parts.setdefault(part, {})[name] = to_tensor(array)
    return parts


def diff(a: Run, b: Run, /) -> bool:
    """Print the leaves in which two checkpoints (of a run folder, its latest one) differ, and by how much.

    The exit code is 1 if there are any.
    """
    one, other = (read_checkpoint(find_checkpoint(path)) for path in (a, b))
    width = max(len(name) for name in {**one.arrays, **other.arrays})
    lines = []
    for name in {**one.arrays, **other.arrays}:
        if one.manifest.leaves.get(name) != other.manifest.leaves.get(name):
            lines.append(f"{name:{width}s} {_difference(one.arrays.get(name), other.arrays.get(name))}")
    print(f"{one.path} and {other.path}: {len(lines)} of {len({**one.arrays, **other.arrays})} leaves differ")
    for line in lines:
        print(line)
    return not lines


def _difference(a: np.ndarray | None, b: np.ndarray | None) -> str:
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


def verify(run: Run, /) -> bool:
    """Compare every file and leaf of a checkpoint, or of all checkpoints of a run, with the stored hashes.

    The exit code is 1 if any is corrupt.
    """
    first = find_checkpoint(run)
    paths = [first] if run == first else [first.parent / str(step) for step in list_steps(first.parent)]
    good = True
    for path in tqdm(paths, unit="checkpoint", leave=False, disable=not sys.stderr.isatty()):
        try:
            content = read_checkpoint(path)
            tqdm.write(f"{path} is intact: {len(content.arrays)} leaves, {_megabytes(content)} MB")
        except CorruptCheckpoint as error:
            good = False
            tqdm.write(str(error))
    return good


def export(
    run: Run,
    /,
    *,
    format: Literal["safetensors", "torch"] = "safetensors",
    checkpoint: Which = "latest",
    out: Out = None,
) -> None:
    """Write the weights (parameters, or their average if there is one, and model state) as one flat file.

    Raises:
        InputError: the file exists, or has the suffix of the other format.
    """
    out = out or run / ("weights.safetensors" if format == "safetensors" else "weights.pt")
    if (out.suffix == ".safetensors") != (format == "safetensors"):
        raise InputError(f"--out {out} does not have the suffix of --format {format}")
    if out.exists():
        raise InputError(f"{out} exists already; choose another --out")
    path = find_checkpoint(run, parse_which(checkpoint))
    content = read_checkpoint(path)
    params, model_state = weights_of(content)
    weights = {**params, **model_state}
    temporary = out.with_name(f"{out.stem}.tmp{out.suffix}")
    try:
        write_state_dict(temporary, weights, content.manifest.info._asdict())
        temporary.rename(out)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"wrote {len(weights)} tensors of {path} to {out}")


def main(args: list[str]) -> bool | None:
    """Run a command line; False if checkpoints differ, or one is corrupt."""
    return tyro.extras.subcommand_cli_from_dict(
        {"show": show, "diff": diff, "verify": verify, "export": export},
        prog="backbones checkpoint",
        description="Inspect checkpoints and export their weights.",
        args=args,
    )
