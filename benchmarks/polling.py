"""What it costs to ask after each step whether a rank was interrupted: `python -m benchmarks.polling` (Linux, root).

Two ranks in network namespaces of their own, joined by a wire that holds each packet back.
"""

import fcntl
import os
import queue
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch

import backbones.distributed as distributed
from benchmarks import medians, run_script

NAMESPACES = ("polling-0", "polling-1")


def main(*, delay: float = 5.0, rounds: int = 5, steps: int = 40) -> None:
    """Time steps of some matrix products in two ranks: alone, asking while they compute, and asking after them.

    Args:
        delay: of the wire, ms in each direction.
        rounds: measurements of each kind, interleaved; the median counts.
        steps: of each measurement.
    """
    if "RANK" in os.environ:
        return _measure(rounds, steps)
    ends = [_open_wire(rank) for rank in range(2)]
    try:
        for one, other in (ends, ends[::-1]):
            packets: queue.Queue[tuple[float, bytes]] = queue.Queue()
            threading.Thread(target=_receive, args=(one, packets, delay / 1e3), daemon=True).start()
            threading.Thread(target=_send, args=(other, packets), daemon=True).start()
        ranks = [subprocess.Popen(["ip", "netns", "exec", NAMESPACES[r], *_command(r, sys.argv[1:])]) for r in (0, 1)]
        codes = [rank.wait() for rank in ranks]
    finally:
        for namespace in NAMESPACES:
            subprocess.run(["ip", "netns", "del", namespace])
    sys.exit(max(codes))


def _command(rank: int, args: list[str]) -> list[str]:
    environment = {
        "RANK": rank,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 1,
        "MASTER_ADDR": "10.77.0.1",
        "MASTER_PORT": 29400,
        "GLOO_SOCKET_IFNAME": f"wire{rank}",
        "OMP_NUM_THREADS": 1,
    }
    assigned = [f"{name}={value}" for name, value in environment.items()]
    return ["env", *assigned, sys.executable, "-m", "benchmarks.polling", *args]


def _open_wire(rank: int) -> int:
    """A network device in the namespace of a rank, whose packets are read from and written to what is returned."""
    end = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, 0x400454CA, struct.pack("16sH", f"wire{rank}".encode(), 0x1001))  # TUNSETIFF: IFF_TUN | IFF_NO_PI
    inside = f"ip -n {NAMESPACES[rank]}"
    for command in (
        f"ip netns add {NAMESPACES[rank]}",
        f"ip link set wire{rank} netns {NAMESPACES[rank]}",
        f"{inside} addr add 10.77.0.{rank + 1}/24 dev wire{rank}",
        f"{inside} link set wire{rank} up",
        f"{inside} link set lo up",
    ):
        subprocess.run(command.split(), check=True)
    return end


def _receive(end: int, packets: "queue.Queue[tuple[float, bytes]]", delay: float) -> None:
    with suppress(OSError):  # the namespace is gone
        while True:
            packet = os.read(end, 65536)
            packets.put((time.perf_counter() + delay, packet))


def _send(end: int, packets: "queue.Queue[tuple[float, bytes]]") -> None:
    with suppress(OSError):
        while True:
            due, packet = packets.get()
            time.sleep(max(due - time.perf_counter(), 0))
            os.write(end, packet)


def _measure(rounds: int, steps: int) -> None:
    distributed.join()
    matrix = torch.randn(700, 700)

    def compute() -> None:
        for _ in range(4):
            matrix @ matrix

    def meanwhile() -> None:
        wait = distributed.any_rank_async(lambda: False)
        compute()
        wait()

    def after() -> None:
        compute()
        distributed.barrier()

    ways = {"not asked": compute, "asked while it computes": meanwhile, "asked after it": after}
    timed = {name: partial(_milliseconds, step, steps) for name, step in ways.items()}
    times = medians(timed, rounds)
    if distributed.is_main():
        print("| step | ms | ratio |\n|---|--:|--:|")
        for name, value in times.items():
            print(f"| {name} | {value:.1f} | {value / times['not asked']:.2f} |")
    distributed.shut_down()


def _milliseconds(step: Callable[[], None], steps: int) -> float:
    distributed.barrier()  # begin together
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return 1e3 * (time.perf_counter() - start) / steps


if __name__ == "__main__":
    run_script(main)
