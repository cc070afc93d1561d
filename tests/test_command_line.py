import subprocess
import sys

import pytest

from backbones.command_line import one_message
from backbones.errors import InputError


@pytest.mark.parametrize("error", [InputError("a b"), OSError("a b")])
def test_a_users_mistake_is_one_message(error: Exception) -> None:
    with pytest.raises(SystemExit, match=r"^error: a b$"), one_message():
        raise error


def test_our_own_mistake_is_a_traceback() -> None:
    with pytest.raises(ZeroDivisionError), one_message():
        _ = 1 / 0


PROGRAM = """
from backbones.command_line import one_message
with one_message():
    for line in range(9):
        print(line, flush={flush})
    {end}
"""


@pytest.mark.parametrize(("flush", "end"), [(True, ""), (False, ""), (False, "raise SystemExit(0)")])
def test_a_reader_that_has_enough_ends_it_quietly(flush: bool, end: str) -> None:
    program = PROGRAM.format(flush=flush, end=end)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 1)
    process.stderr.close()
