import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import backbones.machine as machine

CGROUPS = {
    "cpu.max": [("150000 100000", 1), ("400000 100000", 4), ("max 100000", 8), ("10000 100000", 1)],
    "cpu/cpu.cfs_quota_us": [("300000", 3), ("-1", 8)],
}


@pytest.fixture
def eight_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "text", "cores"), [(file, *case) for file, cases in CGROUPS.items() for case in cases]
)
def test_cores_of_a_container(eight_cores: Path, file: str, text: str, cores: int) -> None:
    (eight_cores / "cpu").mkdir()
    (eight_cores / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (eight_cores / file).write_text(f"{text}\n")
    assert machine.num_cores() == cores


@pytest.mark.parametrize(
    ("environment", "wanted", "threads"),
    [
        ({}, None, 2),
        ({}, 3, 3),
        ({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"}, None, 2),
        ({"LOCAL_WORLD_SIZE": "16", "OMP_NUM_THREADS": "1"}, None, 1),
        ({"LOCAL_WORLD_SIZE": "3", "OMP_NUM_THREADS": "2"}, None, 2),
        ({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "2"}, None, 2),
        ({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"}, 5, 5),
    ],
)
def test_threads(
    eight_cores: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    environment: dict[str, str],
    wanted: int | None,
    threads: int,
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", 2)))
        machine.set_num_threads(wanted)
        assert torch.get_num_threads() == threads
        by_torchrun = environment.get("OMP_NUM_THREADS") == "1" and wanted is None and threads > 1
        assert ("torchrun's default is 1" in capsys.readouterr().out) == by_torchrun
        torch.set_num_threads(3)  # as an audit does, to compute in as many as the run did
        capsys.readouterr()
        machine.set_num_threads(None)
        assert torch.get_num_threads() == 3 and capsys.readouterr().out == ""
        (eight_cores / "cpu.max").write_text("100000 100000\n")
        machine.set_num_threads(None)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


COUNT_PAGE_FAULTS = """
import resource, torch
import backbones.machine as machine
if {keep}: machine.keep_memory()
def step():
    x = torch.ones(20_000_000)  # 80 MB
    return x + 1
for _ in range(20): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, machine.describe_malloc())
"""


@pytest.mark.skipif(not machine.malloc().startswith("libc"), reason="glibc only")
def test_memory_is_kept() -> None:
    def page_faults(keep: bool) -> tuple[int, str]:
        command = [sys.executable, "-c", COUNT_PAGE_FAULTS.format(keep=keep)]
        faults, malloc = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(maxsplit=1)
        return int(faults), malloc.strip()

    system, kept = page_faults(keep=False), page_faults(keep=True)
    assert 10 * kept[0] < system[0]
    assert system[1] == machine.malloc()
    assert kept[1].removesuffix(" in huge pages") == f"{machine.malloc()}, which keeps what is freed"


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "malloc", lambda: "libjemalloc.so.2")
    monkeypatch.setattr(machine, "_keeps_memory", False)
    monkeypatch.setattr(machine, "_has_huge_pages", False)
    machine.keep_memory()
    assert machine.describe_malloc() == "libjemalloc.so.2"


COUNT_HUGE_PAGES = """
import resource, torch
from pathlib import Path
import backbones.machine as machine
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
machine.keep_memory()
x = torch.ones(20_000_000)  # 80 MB
sizes = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
print(sizes["AnonHugePages"].split()[0], machine.describe_malloc())
"""


@pytest.mark.skipif(
    not machine.malloc().startswith("libc")
    or not machine.HUGE_PAGES.exists()
    or "[madvise]" not in machine.HUGE_PAGES.read_text(),
    reason="a kernel that gives huge pages to those who ask",
)
@pytest.mark.parametrize(("limit", "in_huge_pages"), [("resource.RLIM_INFINITY", True), ("16 << 30", False)])
def test_memory_is_in_huge_pages_unless_addresses_are_limited(limit: str, in_huge_pages: bool) -> None:
    command = [sys.executable, "-c", COUNT_HUGE_PAGES.format(limit=limit)]
    kilobytes, malloc = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(maxsplit=1)
    assert (int(kilobytes) > 70_000, malloc.strip().endswith("in huge pages")) == (in_huge_pages, in_huge_pages)


@pytest.mark.parametrize(
    ("variable", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_idle_threads_soon_leave_their_core_unless_told_otherwise(variable: dict[str, str], spins: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | variable
    show = "import sys, backbones, os; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(spins), "False"]


@pytest.mark.parametrize(
    ("avx512", "amx", "chosen"), [(False, False, "float32"), (True, False, "bfloat16"), (False, True, "bfloat16")]
)
def test_precision(monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool, chosen: str) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert machine.choose_precision("auto", torch.device("cpu")) == chosen
    assert machine.choose_precision("float32", torch.device("cpu")) == "float32"
    dtypes = {"auto": getattr(torch, chosen), "float32": torch.float32, "tf32": torch.float32}
    assert {each: machine.autocast_dtype(each, torch.device("cpu")) for each in dtypes} == dtypes


def test_memory_that_a_container_has_left(eight_cores: Path) -> None:
    whole = machine.free_memory()
    assert 0 < whole < 1e14 and 1e6 < machine.resident_memory() < 1e12
    (eight_cores / "memory.stat").write_text("anon 300\nfile 5000\n")
    (eight_cores / "memory.max").write_text("max\n")
    assert machine.free_memory() > 1e6
    (eight_cores / "memory.max").write_text("1000\n")
    assert machine.free_memory() == 700
    for name in ("memory.stat", "memory.max"):  # version 1 has them in a folder, under other names
        (eight_cores / name).unlink()
    (eight_cores / "memory").mkdir()
    (eight_cores / "memory" / "memory.stat").write_text("total_rss 300\ntotal_cache 5000\n")
    (eight_cores / "memory" / "memory.limit_in_bytes").write_text("900\n")
    assert machine.free_memory() == 600
