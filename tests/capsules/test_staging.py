"""In the staging area, one process at a time creates a tenant; only committed files remain."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from capsule_files import tree
from tenantry.capsules.staging import RestoreStaging, backup_staging
from tenantry.errors import TenantryError


def created(data_dir: Path) -> list[str]:
    """Return the files below `<data>` that are not in the staging area."""
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
    """After a commit, only the owner can read the secret, and the staging area is empty."""
    with RestoreStaging(tmp_path, "acme") as staging:
        create(staging)
        with staging.commit():
            pass

    assert ["acme/a", "secrets/ACME"] == created(tmp_path)
    assert [] == list((tmp_path / ".capsules").iterdir())
    assert 0o600 == (tmp_path / "secrets/ACME").stat().st_mode & 0o777


def test_files_that_are_not_committed_go(tmp_path: Path) -> None:
    """Without a commit, or after a failed commit, only files of other processes remain."""
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
    """The database of a clone is dropped unless the tenant is committed, whatever fails later."""
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
    """A backup of another tenant removes a killed process's uncommitted folder and secret."""
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
    """A file with other content than the killed process wrote belongs to another process."""
    with killed(RestoreStaging(tmp_path, "acme")) as staging:
        create(staging)
    for path in (tmp_path / name).iterdir():
        path.write_text("other")

    with backup_staging(tmp_path, "globex"):
        pass

    assert {name} == {path.partition("/")[0] for path in created(tmp_path)}


def test_an_empty_folder_of_a_killed_process_goes(tmp_path: Path) -> None:
    """A process can be killed between the creation of the empty folder and the rename over it."""
    with killed(RestoreStaging(tmp_path, "acme")) as staging:
        create(staging)
    for path in (tmp_path / "acme").iterdir():
        path.unlink()

    with backup_staging(tmp_path, "globex"):
        pass

    assert not (tmp_path / "acme").exists()


def test_one_process_restores_a_tenant(tmp_path: Path) -> None:
    """A second restore of the same name is rejected; other tenants and backups are not."""
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
    """A folder, even an empty one, or a secret that someone else has created is not touched."""
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
    """A folder that no process has locked goes; the folder of a running backup stays."""
    (tmp_path / ".capsules/acme-left").mkdir(parents=True)

    with backup_staging(tmp_path, "acme") as one, backup_staging(tmp_path, "acme") as two:
        assert {one.name, two.name} == {path.name for path in one.parent.iterdir()}
