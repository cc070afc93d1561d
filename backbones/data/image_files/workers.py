"""Worker processes that read images ahead of the step."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbones.errors import InputError


def check_main() -> None:
    """Check that this is not a worker process that imports the user's script, whose own process waits for it.

    Raises:
        InputError: it is.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise InputError(
            'the script has no `if __name__ == "__main__":`, and the processes that read images import it; put what it '
            "does under such a line"
        )


class Workers:
    """Processes that hold a copy of some objects and call their methods; without any, this process calls them.

    Args:
        objects: name -> object; they are pickled, and should be small.
        number: of processes, which start when they are first needed.
    """

    def __init__(self, objects: Mapping[str, Any], number: int) -> None:
        self.number = number
        self._objects = objects
        self._pool: ProcessPoolExecutor | None = None
        self._parent_pipe: connection.Connection | None = None

    def start(self, name: str, method: str, *args: Any) -> Callable[[], Any]:
        """Begin to call a method; the function that is returned waits for the result.

        That function raises what the method has raised, or InputError where a process has died.
        """
        if self.number == 0:
            return lambda: getattr(self._objects[name], method)(*args)
        if self._pool is None:
            context = multiprocessing.get_context("forkserver")  # a fork of this process would copy its threads' locks
            context.set_forkserver_preload(["__main__", "backbones.data"])  # else each of them would import torch
            theirs, self._parent_pipe = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(self.number, context, _begin, (self._objects, theirs))
        with self._report_dead_worker():
            future = self._pool.submit(_call, name, method, *args)

        def wait() -> Any:
            with self._report_dead_worker():
                return future.result()

        return wait

    def in_order(self, name: str, method: str, parts: Iterable[Any]) -> Iterator[Any]:
        """The results of a method for each of `parts`, in their order, while a few of them are under way."""
        started: deque[Callable[[], Any]] = deque()
        for part in parts:
            started.append(self.start(name, method, part))
            if len(started) > 2 * self.number:  # results may be large
                yield started.popleft()()
        while started:
            yield started.popleft()()

    def reading(self, name: str) -> Callable[[Tensor, Tensor], Callable[[], Tensor]] | None:
        """The `start` of a source whose reader is called `name`: each process reads a part of the batch."""
        if self.number == 0:
            return None

        def start(index: Tensor, keys: Tensor) -> Callable[[], Tensor]:
            parts = zip(index.chunk(self.number), keys.chunk(self.number), strict=True)
            waits = [self.start(name, "read_elsewhere", *(each.numpy() for each in part)) for part in parts]
            # by numpy, in one thread: torch's would wait for each other on the cores that decode
            return lambda: torch.from_numpy(np.concatenate([np.asarray(wait()) for wait in waits]))

        return start

    @contextmanager
    def _report_dead_worker(self) -> Iterator[None]:
        try:
            yield
        except (BrokenProcessPool, ConnectionError, EOFError) as error:
            if self._parent_pipe is not None:
                self._parent_pipe.close()  # the other processes ignore the signal that the pool sends them
            raise InputError(
                "a process that reads images has died: it ran out of memory (or /dev/shm), or could not start because "
                'the training script has no `if __name__ == "__main__":`; --data.workers sets their number, and '
                "--resume continues the run"
            ) from error


_objects: Mapping[str, Any] = {}


def _begin(objects: Mapping[str, Any], parent_pipe: connection.Connection) -> None:
    """In a new worker process: keep the objects, leave signals to the process that trains, and end with it.

    The other end of `parent_pipe` closes when that process ends or gives the workers up.
    """
    global _objects
    _objects = objects
    torch.set_num_threads(1)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(each, signal.SIG_IGN)

    def end() -> None:
        connection.wait([parent_pipe])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _call(name: str, method: str, *args: Any) -> Any:
    return getattr(_objects[name], method)(*args)
