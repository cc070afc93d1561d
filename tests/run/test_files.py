import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backbones.errors import InputError
from backbones.run.files import Appender, atomic_path, atomic_write


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: a write is cut off there, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_atomic_write_writes_everything_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, "before")
    with files_of_at_most(4), pytest.raises(OSError):
        atomic_write(path, "something else")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    atomic_write(path, "after")
    assert path.read_text() == "after"


def test_a_new_file_replaces_none_that_another_process_wrote_in_the_meantime(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(InputError, match=r"a\.npz was written by another process"), atomic_path(path, new=True) as mine:
        mine.write_text("mine")
        atomic_write(path, "theirs")
    assert path.read_text() == "theirs" and list(tmp_path.iterdir()) == [path]


def test_what_did_not_fit_is_written_when_there_is_space(tmp_path: Path) -> None:
    file = Appender(tmp_path / "a")
    file.write(b"first\n")
    with files_of_at_most(9):
        file.write(b"second\n")
        assert file.error is not None and file.path.read_bytes() == b"first\nsec"
        file.write(b"third\n")
        assert file.error is not None
    file.write(b"fourth\n")
    assert file.error is None and file.path.read_bytes() == b"first\nsecond\nthird\nfourth\n"
    with files_of_at_most(9):
        file.write(b"fifth\n")
    file.close()
    assert file.path.read_bytes().endswith(b"fourth\nfifth\n")
    again = Appender(tmp_path / "a")
    again.write(b"sixth\n")
    again.close()
    assert file.path.read_bytes().endswith(b"fifth\nsixth\n")
