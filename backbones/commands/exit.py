"""How every command ends: its exit code, and one message instead of a traceback for a user's mistake.

0: done. 1: a mistake of the user, a failure, or a comparison that found a difference. 2: a mistake that tyro found.
75: preempted, and the state is saved. 130: interrupted.
"""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import backbones.distributed as distributed
from backbones.errors import InputError, first_line, is_out_of_memory
from backbones.run.files import discard
from backbones.run.loop import Diverged
from backbones.run.preemption import EXIT_CODE, Preempted

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
"""A disk that is full, cannot be written, or fails."""

SMALLER = (
    "Give fewer images at a time, by --batch-size where there is one; in training by --accumulate or --eval-batch-size"
)
"""What to do where memory runs out."""


def run_command(main: Callable[[list[str]], bool | None]) -> NoReturn:
    """Call `main` with the arguments of the command line and exit; where it returns False, the exit code is 1."""
    if sys.stdout is None or sys.stderr is None:  # closed by the shell: `>&-`
        devnull = Path(os.devnull).open("w")  # noqa: SIM115
        sys.stdout, sys.stderr = sys.stdout or devnull, sys.stderr or devnull
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: for names in other letters
    for name in ("stdout", "stderr"):
        if getattr(sys, name).isatty():
            setattr(sys, name, _Terminal(getattr(sys, name)))
    code: int | str = 1
    try:
        try:
            code = _exit_code(lambda: main([_expand_home(arg) for arg in sys.argv[1:]]))
        finally:
            sys.stdout.flush()
    except OSError as error:
        closed = isinstance(error, BrokenPipeError)  # by whoever reads stdout, such as `head`
        if not (closed or error.errno in DISK_ERRORS):
            raise
        discard(sys.stdout)  # else Python writes again when it exits
        code = code or (1 if closed else f"error: cannot print: {error.strerror}")
    if isinstance(code, str) and distributed.world_size() > 1:  # now: NCCL may wait for a process that is gone
        print(code, file=sys.stderr, flush=True)
        code = 1
    distributed.shut_down(failed=code not in (0, EXIT_CODE))
    sys.exit(code)


class _Terminal:
    """The stream of a terminal. Once that is closed, what is written is lost, and a training goes on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _lost_if_closed():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _lost_if_closed():
            self._stream.flush()


@contextmanager
def _lost_if_closed() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def _expand_home(arg: str) -> str:
    """`--run-dir=~/runs` with the home folder, which the shell puts in only where an argument begins with it."""
    option = re.match(r"--[^=]+=", arg)
    before = option[0] if option else ""
    return before + os.path.expanduser(arg.removeprefix(before))


def _exit_code(main: Callable[[], bool | None]) -> int | str:
    try:
        return 1 if main() is False else 0
    except (InputError, Diverged) as error:
        if distributed.all_failed():  # together: when one rank exits, torchrun ends the others
            return f"error: {error}" if distributed.is_main() else 1
        return f"error: {distributed.this_process()}: {error}"
    except OSError as error:
        if error.errno not in DISK_ERRORS and error.filename is None:
            raise
        return f"error: {error.filename or 'cannot write the files of the run'}: {error.strerror}"
    except RuntimeError as error:
        reason = first_line(error).rpartition("] ")[2]
        if is_out_of_memory(error):
            return f"error: {distributed.this_process()}: {reason} {SMALLER}"
        if "does not have a deterministic implementation" in reason:
            return f"error: {reason.partition(',')[0]}; allow others with --no-deterministic, or use another operation"
        if distributed.is_lost_connection(error):
            return f"error: {distributed.this_process()} has lost another process: {reason}"
        raise
    except Preempted as error:
        _say(str(error))
        return EXIT_CODE
    except KeyboardInterrupt:
        _say("interrupted (a training goes on from its latest checkpoint by --resume)")
        return 130


def _say(line: str) -> None:
    """Print a line to stderr, whose reader may have ended too."""
    if distributed.is_main():
        try:
            print(line, file=sys.stderr, flush=True)
        except OSError:
            discard(sys.stderr)
