"""A resumed run is the same run, to the last bit.

Every case with any number of processes:
`PYTHONPATH=.:tests torchrun --nproc_per_node N tests/helpers/ranks.py resume FOLDER 1,4,7 [CASE ...]`.
"""

from pathlib import Path

import pytest
from helpers.processes import run_ranks
from helpers.resumed import CASES, check_resumed

pytestmark = pytest.mark.slow

RANKS = Path(__file__).parent.parent / "helpers" / "ranks.py"


@pytest.mark.parametrize(("name", "steps"), [("vit-float32-eager", [1, 4, 7]), ("resnet-float32-eager", [1, 7])])
def test_one_process(name: str, steps: list[int], tmp_path: Path) -> None:
    """Dropout, BatchNorm, augmentation, accumulation, clipping and an average of the parameters.

    Resumed near the start, in the middle of the first epoch and in that of the second.
    """
    check_resumed(CASES[name], tmp_path, steps)


def test_inductor(tmp_path: Path) -> None:
    check_resumed(CASES["linear-bfloat16-inductor"], tmp_path, [4])


def test_three_processes(tmp_path: Path) -> None:
    """Of three numbers the order decides how their sum is rounded."""
    done = run_ranks(3, RANKS, "resume", tmp_path, "4", "vit-float32-eager", "resnet-float32-eager", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all equal") == 3
