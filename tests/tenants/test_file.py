"""The host can tell whether a program has a tenant file open for writing."""

import os
from pathlib import Path

import pytest

from tenantry.tenants.file import is_open_for_writing


def test_a_file_is_open_while_a_writer_has_it_open(tmp_path: Path) -> None:
    """A tenant file counts as open until its writer closes it; readers do not count."""
    path = tmp_path / "acme.py"
    path.touch()
    with path.open():
        before = is_open_for_writing(str(path))
    with path.open("a"):
        during = is_open_for_writing(str(path))

    after = is_open_for_writing(str(path))

    assert [False, True, False] == [before, during, after]


def test_a_writer_is_not_blocked(tmp_path: Path) -> None:
    """Checking whether a tenant file is open does not make a later writer wait."""
    path = tmp_path / "acme.py"
    path.touch()
    is_open_for_writing(str(path))

    # While a lease is held, a non-blocking `open` fails instead of waiting.
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


@pytest.mark.parametrize("path", ["absent", "."])
def test_an_unknown_state_counts_as_not_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A tenant file that is missing, or on a file system without leases, counts as not open."""
    monkeypatch.chdir(tmp_path)

    assert not is_open_for_writing(path)
