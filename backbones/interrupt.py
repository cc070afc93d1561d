"""SIGTERM and SIGINT: the step is finished and saved before the process goes."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch.distributed as dist

EXIT_CODE = 75
"""Of a run that was interrupted and saved: EX_TEMPFAIL of sysexits.h, "try again later"."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and has saved its state. The message says where it stopped."""


@contextmanager
def catch_interrupts() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM and SIGINT only make the function that is yielded return True; a second one acts as always.

    Under torchrun, which sends a signal on to processes that have it from the terminal already, a second one does
    nothing either. A signal that the process was started to ignore, as by `&` in a script, stays ignored. Outside of
    the main thread, where Python knows no signals, nothing is caught.
    """
    received = []
    main_thread = threading.current_thread() is threading.main_thread()
    heeded = [number for number in SIGNALS if main_thread and signal.getsignal(number) != signal.SIG_IGN]

    def receive(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        if not dist.is_torchelastic_launched():
            restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, receive) for number in heeded}
    try:
        yield lambda: bool(received)
    finally:
        restore()
