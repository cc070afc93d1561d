"""How a program of ours ends, whatever happens: without a traceback for a user's mistake."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from backbones.types import InputError


@contextmanager
def one_message() -> Iterator[None]:
    """Make an InputError or an OSError of the block one line on stderr, and exit code 1.

    A reader that closes the pipe, such as `head`, has what it wants: that ends the program quietly.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again as it ends
        sys.exit(1)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
