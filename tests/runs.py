"""What tests know of runs and their folders."""

from pathlib import Path

from backbones.checkpoint import list_steps
from backbones.metric_writer import read_metrics

SMALL = "--model.width 32 --model.depth 2 --model.heads 2 --model.mlp-width 64 --batch-size 32 --device cpu"
"""Options of a ViT that trains in seconds."""


def without_times(run_dir: Path) -> list[dict]:
    """The lines of `metrics.jsonl`, as they come again when the run is made again."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def newest(run_dir: Path) -> int:
    """The step of the newest complete checkpoint; -1 if there is none."""
    return max(list_steps(run_dir / "checkpoints"), default=-1)
