"""A resumed run is the run, to the last bit.

Every case with any number of processes: `torchrun --nproc_per_node N tests/ranks.py resume FOLDER [CASE ...]`.
"""

from pathlib import Path

import pytest
from conftest import torchrun
from resumed import CASES, check_resumed

RANKS = Path(__file__).parent / "ranks.py"


@pytest.mark.parametrize("name", [name for name in CASES if "inductor" not in name])
def test_one_process(name: str, tmp_path: Path) -> None:
    """Dropout, BatchNorm, augmentation, accumulation, clipping and an average of the parameters."""
    check_resumed(CASES[name], tmp_path)


def test_inductor(tmp_path: Path) -> None:
    check_resumed(CASES["resnet-bfloat16-inductor"], tmp_path, steps=(4,))


def test_two_processes(tmp_path: Path) -> None:
    done = torchrun(2, RANKS, "resume", tmp_path, "vit-float32-eager", "resnet-bfloat16-aot_eager", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all equal") == 2
