import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backbones.files import Appender, write_whole


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes: a write is cut off there, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_written_whole_or_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "before")
    with files_of_at_most(4), pytest.raises(OSError):
        write_whole(path, "something else")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    write_whole(path, "after")
    assert path.read_text() == "after"


def test_what_did_not_fit_is_written_when_there_is_room(tmp_path: Path) -> None:
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
