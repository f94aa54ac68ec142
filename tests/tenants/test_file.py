"""Whether a tenant file is open for writing."""

import os
from pathlib import Path

import pytest

from tenantry.tenants.file import is_open_for_writing


def test_a_file_is_open_while_a_writer_has_it_open(tmp_path: Path) -> None:
    """A file counts as open until the writer closes the file; a reader does not count."""
    path = tmp_path / "acme.py"
    path.touch()
    with path.open():
        before = is_open_for_writing(str(path))
    with path.open("a"):
        during = is_open_for_writing(str(path))

    after = is_open_for_writing(str(path))

    assert [False, True, False] == [before, during, after]


def test_a_writer_is_not_blocked(tmp_path: Path) -> None:
    """No lease is left behind, so a later writer does not wait."""
    path = tmp_path / "acme.py"
    path.touch()
    is_open_for_writing(str(path))

    # a non-blocking open fails, instead of waiting, while a lease is held
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


@pytest.mark.parametrize("path", ["absent", "."])
def test_an_unknown_state_counts_as_not_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A missing file, or one without leases, is not an error."""
    monkeypatch.chdir(tmp_path)

    assert not is_open_for_writing(path)
