"""Manages the staging area `<data>/.capsules`, where backups and restores keep their files.

The staging area is on the same disk as the tenants' folders. A process locks its staging folder
while it runs. If a process is killed, a later process removes its staging folder and the files that
it created elsewhere below `<data>`.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from tenantry.capsules.locks import folder_lock, lock_exclusively
from tenantry.capsules.tenant_folder import RESTORING
from tenantry.errors import TenantryError

STAGING_FOLDER = ".capsules"
"""Name of the staging area below `<data>`, which is not a valid name of a tenant."""

_CREATED = "made"
"""Name of the folder with the twins. A twin is a copy of a file that a restore has created."""


@contextmanager
def backup_staging(data_dir: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder for a backup, and remove the folder after the `with` block.

    Several backups of the same tenant can run at the same time.
    """
    parent = _create_staging_folder(data_dir)
    with folder_lock(parent):
        _remove_abandoned(parent)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
        lock = lock_exclusively(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


class RestoreStaging:
    """The staging folder of one restore, which exists during a `with` block.

    Two processes cannot restore tenants of the same name at the same time. Unless `commit` is
    called, the end of the `with` block removes all files and folders that the restore has created.

    Args:
        data_dir: the host's `DATA_DIR`.
        name: the new tenant's name.
    """

    def __init__(self, data_dir: Path, name: str) -> None:
        self.name = name
        self.data_dir = data_dir
        self.folder = data_dir / STAGING_FOLDER / f"{name}{RESTORING}"
        self.tenant_folder = self.folder / "tenant"
        """Path of the new tenant's folder, until `move_into_place` is called."""
        self.undo = ExitStack()
        """Callbacks that remove what the restore created outside of `<data>`, such as a database.

        The method `commit` discards the callbacks.
        """
        self._created = self.folder / _CREATED

    def __enter__(self) -> Self:
        parent = _create_staging_folder(self.data_dir)
        with folder_lock(parent):
            _remove_abandoned(parent)
            try:
                self.folder.mkdir(mode=0o700)
            except FileExistsError as error:
                text = f"another process is creating tenant {self.name!r}"
                raise TenantryError(f"{text}; wait for it, or choose another name.") from error
            self._lock = lock_exclusively(self.folder)
        self.tenant_folder.mkdir(mode=0o700)
        self._created.mkdir(mode=0o700)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            with self.undo:
                _remove(self.folder)
        except OSError as failure:
            reason = "" if error is None else f"{error}\n"
            text = f"cannot remove {failure.filename or self.folder}: {failure.strerror}"
            raise TenantryError(f"{reason}{text}; remove it yourself.") from error
        finally:
            os.close(self._lock)

    def move_into_place(self) -> None:
        """Move the tenant's folder to its final path, `<data>/NAME`.

        Raises:
            TenantryError: the final path exists.
        """
        target = self.data_dir / self.name
        token = secrets.token_hex()
        _write_new(self.tenant_folder / RESTORING, token)
        twin = self._write_twin(target / RESTORING, token)
        try:
            target.mkdir(mode=0o700)  # `rename` would replace an existing empty folder
        except FileExistsError as error:
            twin.unlink()  # another process has created the folder
            raise _exists_error(target) from error
        self.tenant_folder.rename(target)

    def add_file(self, path: Path, text: str) -> None:
        """Write a file below `<data>` with mode 0600.

        Raises:
            TenantryError: the file exists.
        """
        twin = self._write_twin(path, text)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _write_new(path, text)
        except FileExistsError as error:
            twin.unlink()  # another process has created the file
            raise _exists_error(path) from error

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Keep the new files and folders, even if the process is killed in the `with` block.

        If the `with` block raises an exception, the new files and folders are removed.
        """
        committed = self.folder / "committed"
        self._created.rename(committed)
        try:
            yield
            (self.data_dir / self.name / RESTORING).unlink(missing_ok=True)
        except BaseException:
            committed.rename(self._created)
            raise
        self.undo.pop_all()

    def _write_twin(self, path: Path, text: str) -> Path:
        """Write the twin of a file to the staging folder, before the file itself is created.

        A cleanup removes a file only if the content equals the twin, so files of other processes
        remain.
        """
        twin = self._created / path.relative_to(self.data_dir)
        twin.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(twin, text)
        return twin


def _create_staging_folder(data_dir: Path) -> Path:
    folder = data_dir / STAGING_FOLDER
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise TenantryError(f"cannot create {folder}: {error.strerror}.") from error
    return folder


def _write_new(path: Path, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _exists_error(path: Path) -> TenantryError:
    text = f"{path} was created in the meantime, and restore never overwrites; move it away."
    return TenantryError(text)


def _remove_abandoned(parent: Path) -> None:
    """Remove the staging folders of processes that have ended."""
    for folder in parent.iterdir():
        with suppress(OSError):  # the folder is in use, or belongs to another user
            lock = lock_exclusively(folder)
            try:
                _remove(folder)
            finally:
                os.close(lock)


def _remove(folder: Path) -> None:
    """Remove a staging folder, and the uncommitted files of the process that created it."""
    created, data_dir = folder / _CREATED, folder.parent.parent
    for twin in [path for path in created.rglob("*") if path.is_file()]:
        path = data_dir / twin.relative_to(created)
        is_ours = _has_content_of(twin, path)
        if path.name == RESTORING and is_ours:
            shutil.rmtree(path.parent)
        elif path.name == RESTORING:
            with suppress(OSError):
                path.parent.rmdir()  # a killed process may leave an empty folder
        elif is_ours:
            path.unlink()
    shutil.rmtree(folder)


def _has_content_of(twin: Path, path: Path) -> bool:
    """Whether a file equals its twin, or is empty because the restore was killed."""
    try:
        content = path.read_bytes()
    except OSError:  # an unreadable file is not removed
        return False
    return content == twin.read_bytes() or (not content and path.name != RESTORING)
