"""How a program of ours ends: with one message for a user's mistake, and quietly when its reader has enough."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from backbones.errors import InputError


@contextmanager
def one_message() -> Iterator[None]:
    """Make an InputError or an OSError of the block one line on stderr, and exit code 1."""
    with quiet_when_unread():
        try:
            yield
        except BrokenPipeError:
            raise
        except (InputError, OSError) as error:
            sys.exit(f"error: {error}")


@contextmanager
def quiet_when_unread() -> Iterator[None]:
    """End with exit code 1 and without a word when whoever reads stdout, such as `head`, has closed the pipe."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again as it ends
        sys.exit(1)
