"""Signals that ask a run to stop: it finishes its step, saves its state and exits with code 75."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch.distributed as dist

EXIT_CODE = 75
"""Exit code of a run that was preempted and has saved its state: EX_TEMPFAIL of sysexits.h, "try again later"."""

PARENT = os.getppid()
"""The process that started this one: torchrun, if it is one of several."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Preempted(KeyboardInterrupt):
    """The run was asked to stop and has saved its state. The message names the step."""


@contextmanager
def handle_signals() -> Iterator[Callable[[], bool]]:
    """Within the block, the first of `SIGNALS` only makes the yielded function return True; a second one acts as usual.

    Under torchrun, which forwards signals that its processes may have received from the terminal already, the second
    one is ignored as well. A signal that the process was started to ignore, as by `nohup`, stays ignored. Outside of
    the main thread, where Python handles no signals, nothing is handled.

    A torchrun that is gone asks to stop as well: its processes would go on beside those that another one starts.
    """
    received = []
    main_thread = threading.current_thread() is threading.main_thread()
    handled = [number for number in SIGNALS if main_thread and signal.getsignal(number) != signal.SIG_IGN]

    def receive(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        if not dist.is_torchelastic_launched():
            restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, receive) for number in handled}
    try:
        yield lambda: bool(received) or (dist.is_torchelastic_launched() and os.getppid() != PARENT)
    finally:
        restore()
