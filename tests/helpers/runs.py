"""Runs and their folders, and real processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

import backbones.tree as tree
from backbones.run.checkpoint import list_steps
from backbones.run.metric_lines import TIMES, read_metrics

ROOT = Path(__file__).parent.parent.parent

SMALL = (
    "--model.width 32 --model.depth 1 --model.heads 2 --model.mlp-width 64 --batch-size 32 --device cpu "
    "--schedule.warmup-steps 2"
)
"""Options of a ViT that trains in seconds."""


def without_times(run_dir: Path) -> list[dict]:
    """The lines of `metrics.jsonl` without times: a reproduced run writes the same."""
    lines = read_metrics(run_dir)
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def newest(run_dir: Path) -> int:
    """The step of the newest complete checkpoint; -1 if there is none."""
    return max(list_steps(run_dir / "checkpoints"), default=-1)


def flat(leaves: tree.Tree) -> torch.Tensor:
    """All leaves as one vector, float64 on the CPU."""
    return torch.cat([leaf.detach().cpu().double().reshape(-1) for leaf in tree.leaves(leaves)])


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm of what was wanted."""
    return ((got - wanted).norm() / wanted.norm()).item()


def torchrun(num_processes: int, *args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in several processes on this machine to its end; options of torchrun come before the script."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "300"  # a busy machine may need more than 30 s to save and stop
    return subprocess.run([*launcher, *args], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
