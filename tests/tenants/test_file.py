"""Whether a file is open for writing."""

import os
from pathlib import Path

import pytest

from tenantry.tenants.file import is_open_for_writing


def test_a_file_is_open_for_writing_while_a_writer_has_it_open(tmp_path: Path) -> None:
    """From its opening to its closing, however long the writer pauses; a reader is none."""
    path = tmp_path / "acme.py"
    path.touch()
    with path.open():
        before = is_open_for_writing(str(path))
    with path.open("a"):
        during = is_open_for_writing(str(path))

    after = is_open_for_writing(str(path))

    assert [False, True, False] == [before, during, after]


def test_a_writer_is_not_hindered(tmp_path: Path) -> None:
    """No lease is left behind: whoever opens the file later does not wait."""
    path = tmp_path / "acme.py"
    path.touch()
    is_open_for_writing(str(path))

    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))  # would fail, not wait, under a lease


@pytest.mark.parametrize("path", ["absent", "."])
def test_what_cannot_be_known_is_no_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A file that is not there, and what has no leases, are answered for with no error."""
    monkeypatch.chdir(tmp_path)

    assert not is_open_for_writing(path)
