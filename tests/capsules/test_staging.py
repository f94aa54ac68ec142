"""Only one process at a time can create a given tenant, and only committed files remain."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from capsule_files import tree
from tenantry.capsules.staging import RestoreStaging, backup_staging
from tenantry.errors import TenantryError


def created(data_dir: Path) -> list[str]:
    """Return the files below `<data>`, except those in the staging area."""
    return sorted(name for name in tree(data_dir) if not name.startswith(".capsules/"))


def create(staging: RestoreStaging) -> None:
    """Create a tenant with one file and one secret."""
    (staging.tenant_folder / "a").write_text("1")
    staging.move_into_place()
    staging.add_file(staging.data_dir / "secrets/ACME", "MARKER\n")


@contextmanager
def killed(staging: RestoreStaging) -> Iterator[RestoreStaging]:
    """Release the lock after the block, as the kernel does for a killed process."""
    try:
        yield staging.__enter__()
    finally:
        os.close(staging._lock)


def test_committed_files_remain(tmp_path: Path) -> None:
    """After a commit, only the owner can read the new secret, and the staging area is empty."""
    with RestoreStaging(tmp_path, "acme") as staging:
        create(staging)
        with staging.commit():
            pass

    assert ["acme/a", "secrets/ACME"] == created(tmp_path)
    assert [] == list((tmp_path / ".capsules").iterdir())
    assert 0o600 == (tmp_path / "secrets/ACME").stat().st_mode & 0o777


def test_files_that_are_not_committed_go(tmp_path: Path) -> None:
    """Without a successful commit, a restore leaves no files and keeps those of other processes."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/GLOBEX").write_text("MARKER\n")

    with RestoreStaging(tmp_path, "acme") as staging:
        create(staging)
    with suppress(ZeroDivisionError), RestoreStaging(tmp_path, "acme") as staging:
        create(staging)
        with staging.commit():
            raise ZeroDivisionError

    assert ["secrets/GLOBEX"] == created(tmp_path)


@pytest.mark.parametrize("is_committed", [False, True])
def test_undo_callbacks_run_unless_committed(tmp_path: Path, *, is_committed: bool) -> None:
    """If creating a clone fails before the commit, the clone's new database is dropped."""
    dropped: list[bool] = []

    with suppress(ZeroDivisionError), RestoreStaging(tmp_path, "acme") as staging:
        staging.undo.callback(dropped.append, True)
        create(staging)
        with staging.commit():
            if not is_committed:
                raise ZeroDivisionError
        raise ZeroDivisionError

    assert [True] * (not is_committed) == dropped
    assert ["acme/a", "secrets/ACME"] * is_committed == created(tmp_path)


@pytest.mark.parametrize("is_committed", [False, True])
def test_the_next_process_removes_what_a_killed_one_left(
    tmp_path: Path, *, is_committed: bool
) -> None:
    """A later backup removes the folder and the secret that a killed restore left behind."""
    with killed(RestoreStaging(tmp_path, "acme")) as staging:
        create(staging)
        if is_committed:
            with staging.commit():
                pass
    assert ["secrets/ACME"] == created(tmp_path)[-1:]

    with backup_staging(tmp_path, "globex") as folder:
        assert [folder] == list(folder.parent.iterdir())

    assert ["acme/a", "secrets/ACME"] * is_committed == created(tmp_path)


@pytest.mark.parametrize("name", ["acme", "secrets"])
def test_changed_files_are_not_removed(tmp_path: Path, name: str) -> None:
    """A file that was changed after a restore was killed is not removed."""
    with killed(RestoreStaging(tmp_path, "acme")) as staging:
        create(staging)
    for path in (tmp_path / name).iterdir():
        path.write_text("other")

    with backup_staging(tmp_path, "globex"):
        pass

    assert {name} == {path.partition("/")[0] for path in created(tmp_path)}


def test_an_empty_folder_of_a_killed_process_goes(tmp_path: Path) -> None:
    """If a restore is killed before it renames its folder, a later process removes the folder."""
    with killed(RestoreStaging(tmp_path, "acme")) as staging:
        create(staging)
    for path in (tmp_path / "acme").iterdir():
        path.unlink()

    with backup_staging(tmp_path, "globex"):
        pass

    assert not (tmp_path / "acme").exists()


def test_one_process_restores_a_tenant(tmp_path: Path) -> None:
    """Two processes cannot restore the same tenant at once; other tenants are not affected."""
    with (
        RestoreStaging(tmp_path, "acme"),
        RestoreStaging(tmp_path, "globex"),
        backup_staging(tmp_path, "acme"),
        pytest.raises(TenantryError, match="another process is creating tenant 'acme'"),
        RestoreStaging(tmp_path, "acme"),
    ):
        pass

    with RestoreStaging(tmp_path, "acme"):
        pass


@pytest.mark.parametrize("name", ["acme", "secrets"])
def test_files_that_appear_in_the_meantime_stay(tmp_path: Path, name: str) -> None:
    """A restore does not overwrite a folder or a secret that another process has just created."""
    existing = tmp_path / name
    with RestoreStaging(tmp_path, "acme") as staging:
        existing.mkdir()
        if name == "secrets":
            (existing / "ACME").write_text("MARKER\n")
        with pytest.raises(TenantryError, match="was created in the meantime"):
            create(staging)

    assert existing.is_dir()
    assert ["secrets/ACME"] * (name == "secrets") == created(tmp_path)


def test_the_next_backup_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    """A backup removes an unlocked folder of a killed backup, and keeps a running backup's."""
    (tmp_path / ".capsules/acme-left").mkdir(parents=True)

    with backup_staging(tmp_path, "acme") as one, backup_staging(tmp_path, "acme") as two:
        assert {one.name, two.name} == {path.name for path in one.parent.iterdir()}
