"""A new SQLite file outside the tenant's folder appears only when the restore commits the file."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import make_url

from capsule_files import tree
from tenantry.capsules.new_database import DatabaseError, NewDatabaseFile


def new_file(path: Path) -> NewDatabaseFile:
    """Return the new database at a path."""
    return NewDatabaseFile(make_url(f"sqlite:///{path}"))


def write(database: NewDatabaseFile) -> None:
    """Create the file, as SQLite would."""
    Path(str(database.url.database)).write_text("rows")


def test_a_committed_file_appears(tmp_path: Path) -> None:
    """`commit` gives the database file the final name, and leaves no other file in the folder."""
    with new_file(tmp_path / "a") as database:
        write(database)
        assert not (tmp_path / "a").exists()
        database.commit()

    assert {"a": b"rows"} == tree(tmp_path)
    assert 1 == len(list(tmp_path.iterdir()))


def test_a_file_that_is_not_committed_goes(tmp_path: Path) -> None:
    """A committed database file is deleted if a later statement of the block fails."""
    with new_file(tmp_path / "a") as database:
        write(database)
    with suppress(ZeroDivisionError), new_file(tmp_path / "a") as database:
        write(database)
        database.commit()
        raise ZeroDivisionError

    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("is_named", [False, True])
def test_the_next_restore_removes_what_a_killed_one_left(tmp_path: Path, *, is_named: bool) -> None:
    """A process can be killed before `commit`, or while `commit` renames the database file."""
    killed = new_file(tmp_path / "a").__enter__()
    write(killed)
    if is_named:
        (tmp_path / "a").hardlink_to(str(killed.url.database))
    os.close(killed._lock)

    with new_file(tmp_path / "a"):
        assert {} == tree(tmp_path)


def test_the_file_of_someone_else_stays(tmp_path: Path) -> None:
    """A file that appeared after a killed restore does not belong to the restore."""
    os.close(new_file(tmp_path / "a").__enter__()._lock)
    (tmp_path / "a").write_text("other")

    with pytest.raises(DatabaseError, match="already exists"), new_file(tmp_path / "a"):
        pass

    assert {"a": b"other"} == tree(tmp_path)


def test_a_file_that_appears_in_the_meantime_stays(tmp_path: Path) -> None:
    """A file that someone else creates during the restore is not overwritten."""
    with new_file(tmp_path / "a") as database:
        write(database)
        (tmp_path / "a").write_text("other")
        with pytest.raises(DatabaseError, match="was created in the meantime"):
            database.commit()

    assert {"a": b"other"} == tree(tmp_path)


def test_one_restore_creates_a_file(tmp_path: Path) -> None:
    """A second restore into the same file is rejected."""
    with (
        new_file(tmp_path / "a"),
        pytest.raises(DatabaseError, match="another restore is creating"),
        new_file(tmp_path / "a"),
    ):
        pass


@pytest.mark.parametrize("text", ["", ":memory:", "a?mode=memory", "file:a?uri=true", "x/y"])
def test_a_url_without_a_file_is_rejected(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database in memory, a URL with options or a missing folder cannot be restored into."""
    monkeypatch.chdir(tmp_path)

    with (
        pytest.raises(DatabaseError, match=r"name a file|there is no folder"),
        NewDatabaseFile(make_url(f"sqlite:///{text}")),
    ):
        pass
