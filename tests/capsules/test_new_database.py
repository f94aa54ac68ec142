"""A restore's new SQLite file gets its final name only when the restore commits."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import make_url

from capsule_files import tree
from tenantry.capsules.new_database import DatabaseError, NewDatabaseFile


def new_file(path: Path) -> NewDatabaseFile:
    """Return the object for a new SQLite database at a path."""
    return NewDatabaseFile(make_url(f"sqlite:///{path}"))


def write(database: NewDatabaseFile) -> None:
    """Create the database file, as SQLite would."""
    Path(str(database.url.database)).write_text("rows")


def test_a_committed_file_appears(tmp_path: Path) -> None:
    """`commit` gives the new database file its final name, and leaves no temporary file."""
    with new_file(tmp_path / "a") as database:
        write(database)
        assert not (tmp_path / "a").exists()
        database.commit()

    assert {"a": b"rows"} == tree(tmp_path)
    assert 1 == len(list(tmp_path.iterdir()))


def test_a_file_that_is_not_committed_goes(tmp_path: Path) -> None:
    """If a restore fails, its new database file is deleted, even after the commit."""
    with new_file(tmp_path / "a") as database:
        write(database)
    with suppress(ZeroDivisionError), new_file(tmp_path / "a") as database:
        write(database)
        database.commit()
        raise ZeroDivisionError

    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("is_named", [False, True])
def test_the_next_restore_removes_what_a_killed_one_left(tmp_path: Path, *, is_named: bool) -> None:
    """The next restore removes the database file that a killed restore left behind."""
    killed = new_file(tmp_path / "a").__enter__()
    write(killed)
    if is_named:
        (tmp_path / "a").hardlink_to(str(killed.url.database))
    os.close(killed._lock)

    with new_file(tmp_path / "a"):
        assert {} == tree(tmp_path)


def test_the_file_of_someone_else_stays(tmp_path: Path) -> None:
    """A restore keeps a database file that another program created after a killed restore."""
    os.close(new_file(tmp_path / "a").__enter__()._lock)
    (tmp_path / "a").write_text("other")

    with pytest.raises(DatabaseError, match="already exists"), new_file(tmp_path / "a"):
        pass

    assert {"a": b"other"} == tree(tmp_path)


def test_a_file_that_appears_in_the_meantime_stays(tmp_path: Path) -> None:
    """A restore does not overwrite a database file that another program has just created."""
    with new_file(tmp_path / "a") as database:
        write(database)
        (tmp_path / "a").write_text("other")
        with pytest.raises(DatabaseError, match="was created in the meantime"):
            database.commit()

    assert {"a": b"other"} == tree(tmp_path)


def test_one_restore_creates_a_file(tmp_path: Path) -> None:
    """Two restores cannot create the same database file at the same time."""
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
    """A restore rejects an in-memory database, a URL with options, and a missing folder."""
    monkeypatch.chdir(tmp_path)

    with (
        pytest.raises(DatabaseError, match=r"name a file|there is no folder"),
        NewDatabaseFile(make_url(f"sqlite:///{text}")),
    ):
        pass
