"""Where tenants are made: one process at a time, and nothing is left of what was not kept."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import make_url

from capsule_files import tree
from tenantry.capsules.new_database import DatabaseError, NewDatabaseFile
from tenantry.capsules.staging import RestoreStaging, backup_staging
from tenantry.errors import TenantryError


def made(data_dir: Path) -> list[str]:
    """Return what is below `<data>`, but for where things are made."""
    return sorted(name for name in tree(data_dir) if not name.startswith(".capsules/"))


def fill(place: RestoreStaging) -> None:
    """Make a tenant of one file and one secret."""
    (place.tenant / "a").write_text("1")
    place.move()
    place.add(place.data_dir / "secrets/ACME", "MARKER\n")


@contextmanager
def killed(place: RestoreStaging) -> Iterator[RestoreStaging]:
    """Let go of a workplace after the block as the system does it for a process that is killed."""
    try:
        yield place.__enter__()
    finally:
        os.close(place._lock)


def test_what_is_kept_stays(tmp_path: Path) -> None:
    """The folder has its name, the secret is its owner's, and nothing else is left."""
    with RestoreStaging(tmp_path, "acme") as place:
        fill(place)
        with place.commit():
            pass

    assert ["acme/a", "secrets/ACME"] == made(tmp_path)
    assert [] == list((tmp_path / ".capsules").iterdir())
    assert 0o600 == (tmp_path / "secrets/ACME").stat().st_mode & 0o777


def test_what_is_not_kept_goes(tmp_path: Path) -> None:
    """Whether nobody has kept it, or keeping has failed: what others have there stays."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/GLOBEX").write_text("MARKER\n")

    with RestoreStaging(tmp_path, "acme") as place:
        fill(place)
    with suppress(ZeroDivisionError), RestoreStaging(tmp_path, "acme") as place:
        fill(place)
        with place.commit():
            raise ZeroDivisionError

    assert ["secrets/GLOBEX"] == made(tmp_path)


@pytest.mark.parametrize("is_kept", [False, True])
def test_what_was_made_elsewhere_comes_and_goes_with_it(tmp_path: Path, *, is_kept: bool) -> None:
    """A clone's database is dropped unless the tenant is kept; then whatever fails after."""
    dropped: list[bool] = []

    with suppress(ZeroDivisionError), RestoreStaging(tmp_path, "acme") as place:
        place.undo.callback(dropped.append, True)
        fill(place)
        with place.commit():
            if not is_kept:
                raise ZeroDivisionError
        raise ZeroDivisionError

    assert [True] * (not is_kept) == dropped
    assert ["acme/a", "secrets/ACME"] * is_kept == made(tmp_path)


@pytest.mark.parametrize("is_kept", [False, True])
def test_what_a_killed_process_left_is_swept(tmp_path: Path, *, is_kept: bool) -> None:
    """The next capsule, of whatever tenant, removes folder and secret; what was kept stays."""
    with killed(RestoreStaging(tmp_path, "acme")) as place:
        fill(place)
        if is_kept:
            with place.commit():
                pass
    assert ["secrets/ACME"] == made(tmp_path)[-1:]

    with backup_staging(tmp_path, "globex") as folder:
        assert [folder] == list(folder.parent.iterdir())

    assert ["acme/a", "secrets/ACME"] * is_kept == made(tmp_path)


@pytest.mark.parametrize("name", ["acme", "secrets"])
def test_only_what_was_left_is_swept(tmp_path: Path, name: str) -> None:
    """What has another content than the killed process has given it is somebody else's by now."""
    with killed(RestoreStaging(tmp_path, "acme")) as place:
        fill(place)
    for path in (tmp_path / name).iterdir():
        path.write_text("other")

    with backup_staging(tmp_path, "globex"):
        pass

    assert name in {path.partition("/")[0] for path in made(tmp_path)}
    assert 1 == len({path.partition("/")[0] for path in made(tmp_path)})


def test_an_empty_folder_that_was_left_is_swept(tmp_path: Path) -> None:
    """It was killed between making the folder's name and renaming the folder to it."""
    with killed(RestoreStaging(tmp_path, "acme")) as place:
        fill(place)
    for path in (tmp_path / "acme").iterdir():
        path.unlink()

    with backup_staging(tmp_path, "globex"):
        pass

    assert not (tmp_path / "acme").exists()


def test_one_process_makes_a_tenant(tmp_path: Path) -> None:
    """A second one is refused while the first is at work; other tenants are not in its way."""
    with (
        RestoreStaging(tmp_path, "acme"),
        RestoreStaging(tmp_path, "globex"),
        backup_staging(tmp_path, "acme"),
        pytest.raises(TenantryError, match="another process is making tenant 'acme'"),
        RestoreStaging(tmp_path, "acme"),
    ):
        pass

    with RestoreStaging(tmp_path, "acme"):
        pass


@pytest.mark.parametrize("name", ["acme", "secrets"])
def test_what_appeared_meanwhile_stays(tmp_path: Path, name: str) -> None:
    """A folder or a secret that somebody else has made since is not touched, be it empty."""
    there = tmp_path / name
    with RestoreStaging(tmp_path, "acme") as place:
        there.mkdir()
        if name == "secrets":
            (there / "ACME").write_text("MARKER\n")
        with pytest.raises(TenantryError, match="is there by now"):
            fill(place)

    assert there.is_dir()
    assert ["secrets/ACME"] * (name == "secrets") == made(tmp_path)


def test_left_staging_is_swept(tmp_path: Path) -> None:
    """What a killed process left goes with the next capsule; what another one works in stays."""
    (tmp_path / ".capsules/acme-left").mkdir(parents=True)

    with backup_staging(tmp_path, "acme") as one, backup_staging(tmp_path, "acme") as two:
        assert {one.name, two.name} == {path.name for path in one.parent.iterdir()}


# -- a SQLite file elsewhere ----------------------------------------------------------------------


def database_file(path: Path) -> NewDatabaseFile:
    """Return the database that is to be at a path."""
    return NewDatabaseFile(make_url(f"sqlite:///{path}"))


def write(database: NewDatabaseFile) -> None:
    """Make it, as SQLite would."""
    Path(str(database.url.database)).write_text("rows")


def test_a_database_file_is_there_when_it_is_kept(tmp_path: Path) -> None:
    """It has its name at the end only, and nothing else is beside it."""
    with database_file(tmp_path / "a") as database:
        write(database)
        assert not (tmp_path / "a").exists()
        database.keep()

    assert {"a": b"rows"} == tree(tmp_path)
    assert 1 == len(list(tmp_path.iterdir()))


def test_a_database_file_that_is_not_kept_goes(tmp_path: Path) -> None:
    """Nor is it there if something fails after it was kept."""
    with database_file(tmp_path / "a") as database:
        write(database)
    with suppress(ZeroDivisionError), database_file(tmp_path / "a") as database:
        write(database)
        database.keep()
        raise ZeroDivisionError

    assert [] == list(tmp_path.iterdir())


def test_a_database_file_that_a_killed_restore_left_is_removed(tmp_path: Path) -> None:
    """Half made, or with its name and not kept; a file of somebody else with this name stays."""
    for is_named in (False, True):
        left = database_file(tmp_path / "a").__enter__()
        write(left)
        if is_named:
            (tmp_path / "a").hardlink_to(str(left.url.database))
        os.close(left._lock)
        with database_file(tmp_path / "a"):
            assert {} == tree(tmp_path)
    os.close(database_file(tmp_path / "a").__enter__()._lock)
    (tmp_path / "a").write_text("other")

    with pytest.raises(DatabaseError, match="is there already"), database_file(tmp_path / "a"):
        pass

    assert {"a": b"other"} == tree(tmp_path)


def test_a_database_file_that_appeared_meanwhile_stays(tmp_path: Path) -> None:
    """A file that somebody else has made since is not overwritten."""
    with database_file(tmp_path / "a") as database:
        write(database)
        (tmp_path / "a").write_text("other")
        with pytest.raises(DatabaseError, match="is there by now"):
            database.keep()

    assert {"a": b"other"} == tree(tmp_path)


def test_one_restore_makes_a_database_file(tmp_path: Path) -> None:
    """A second one is refused while the first is at work."""
    with (
        database_file(tmp_path / "a"),
        pytest.raises(DatabaseError, match="another restore is making"),
        database_file(tmp_path / "a"),
    ):
        pass


@pytest.mark.parametrize("text", ["", ":memory:", "a?mode=memory", "file:a?uri=true", "x/y"])
def test_what_names_no_file_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database in memory, or one with settings of its own, cannot be made elsewhere first."""
    monkeypatch.chdir(tmp_path)

    with (
        pytest.raises(DatabaseError, match=r"name a file|is no folder"),
        NewDatabaseFile(make_url(f"sqlite:///{text}")),
    ):
        pass
