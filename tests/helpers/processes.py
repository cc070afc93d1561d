"""Real processes that start at once: forked off one that has already imported what a training needs.

The imports are nearly all that a short run costs. A process is as if it were new, but that all have the same seed for
Python's hashes, and this checkout on their path. What needs a new interpreter is started by `subprocess`, and what
needs torchrun itself by `torchrun`.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch.distributed as dist
from helpers.runs import ROOT

import backbones.run.preemption as preemption
import backbones.run.provenance as provenance

IMPORTED = (
    "backbones.commands.train",
    "backbones.run.checkpoint.orbax_state",
    "experiments",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "torch._dynamo",  # for DistributedDataParallel
)

OUTPUTS = ("stdout", "stderr")

TIMEOUT = 600.0
"""Seconds in which a process ends."""


class Process:
    """`python ARGS`, where these begin with a script or with `-m MODULE`; much like a `subprocess.Popen`.

    It has no input. `stdout` and `stderr` are what it has printed, when it is known to have ended.
    """

    def __init__(
        self, args: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] = {}, new_session: bool = False
    ) -> None:
        self._outputs = Path(tempfile.mkdtemp())
        env = {**os.environ, "OMP_NUM_THREADS": "1", **env}  # the number of threads decides how sums are rounded
        request = {"args": [*map(str, args)], "cwd": str(cwd), "env": env, "outputs": str(self._outputs)}
        self.pid: int = _ask({**request, "new_session": new_session})
        self.returncode: int | None = None
        self.stdout = self.stderr = ""

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        if self.returncode is None and (code := _ask({"pid": self.pid})) is not None:
            self.returncode = code
            self.stdout, self.stderr = ((self._outputs / name).read_text() for name in OUTPUTS)
            shutil.rmtree(self._outputs)
        return self.returncode

    def wait(self, timeout: float = TIMEOUT) -> int:
        """The exit code, when it has ended."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(args: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    """`python ARGS`, to its end."""
    process = Process(args, cwd=cwd, env=env)
    return subprocess.CompletedProcess(args, process.wait(), process.stdout, process.stderr)


def run_ranks(
    number: int, *args: str | Path, cwd: Path, env: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """What torchrun does: start a script several times, to its end; when one of them fails, end the others.

    The code that is returned is that of the first rank that failed, and the output that of all ranks.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = {**env, "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
    env |= {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}  # torchrun holds the store too
    env |= {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0"}
    ranks = [Process(args, cwd=cwd, env={**env, "RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(number)]
    code, deadline = 0, time.monotonic() + TIMEOUT
    while None in (codes := [rank.poll() for rank in ranks]):
        if code := code or next(filter(None, codes), 0):
            for rank in ranks:
                rank.send_signal(signal.SIGTERM)
        if time.monotonic() > deadline:
            for rank in ranks:
                rank.kill()
                rank.wait()
            raise TimeoutError("".join(rank.stderr for rank in ranks))
        time.sleep(0.02)
    outputs = ("".join(rank.stdout for rank in ranks), "".join(rank.stderr for rank in ranks))
    return subprocess.CompletedProcess(args, code or next(filter(None, codes), 0), *outputs)


@cache
def _server() -> subprocess.Popen[str]:
    """The process that is forked; it ends with this one."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    pipe, command = subprocess.PIPE, [sys.executable, "-m", "helpers.processes"]
    server = subprocess.Popen(command, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, text=True)
    atexit.register(server.communicate)
    return server


def _ask(request: dict[str, Any]) -> Any:
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def _serve() -> None:
    """Start a process for each request that has `args`; for one that has `pid` tell its exit code, null while it runs.

    Returns at the end of the input; and in each new process, when its script has ended.
    """
    for module in IMPORTED:
        importlib.import_module(module)
    provenance._packages()  # is kept, and takes a fifth of a second
    os.fsync = lambda descriptor: None  # a killed process loses nothing that it has written; only a power cut would
    gc.freeze()  # else each process would copy the memory of what was imported, to look for garbage in it
    for line in sys.stdin:
        request = json.loads(line)
        if "args" in request:
            answer: int | None = os.fork()
            if answer == 0:
                return _become(**request)
        else:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)


def _become(args: list[str], cwd: str, env: dict[str, str], outputs: str, new_session: bool) -> None:
    """Be a new process, and run a script or a module."""
    if new_session:
        os.setsid()
    for number, path in enumerate([os.devnull, *(f"{outputs}/{name}" for name in OUTPUTS)]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.stdin = open(0)  # noqa: SIM115
    for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(each, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    preemption.PARENT = os.getppid()
    if args[0] == "-m":
        sys.path[0], sys.argv = cwd, args[1:]
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(args[0]).parent), args
        runpy.run_path(args[0], run_name="__main__")


if __name__ == "__main__":
    _serve()
