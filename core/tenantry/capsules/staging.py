"""The staging area: folders below `<data>/.capsules`, on the disk of the tenants' folders.

Each folder is locked while a process works in it. The next process removes the folders that killed
ones left, together with what those had already put elsewhere below `<data>`, and nothing else.
Knows files only.
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
"""A folder below `<data>`; a tenant cannot have this name."""

_CREATED = "made"
"""A folder that mirrors `<data>`: it has a twin of each file that the restore put there."""


@contextmanager
def backup_staging(data_dir: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder for a backup of a tenant, and remove it after the block.

    Several backups of one tenant can run at once.
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
    """The staging area of one restore, for the length of a `with` block.

    One process at a time restores a tenant of this name. What the restore created is removed after
    the block, unless `commit` kept it.

    Args:
        data_dir: `<data>`.
        name: the new tenant's name.
    """

    def __init__(self, data_dir: Path, name: str) -> None:
        self.name = name
        self.data_dir = data_dir
        self.folder = data_dir / STAGING_FOLDER / f"{name}{RESTORING}"
        self.tenant_folder = self.folder / "tenant"
        """The new tenant's folder, until `move_into_place`."""
        self.undo = ExitStack()
        """Callbacks that remove what was created elsewhere; `commit` drops them."""
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
        """Move the tenant's folder to its final path.

        Raises:
            TenantryError: something exists there.
        """
        target = self.data_dir / self.name
        token = secrets.token_hex()
        _write_new(self.tenant_folder / RESTORING, token)
        twin = self._write_twin(target / RESTORING, token)
        try:
            target.mkdir(mode=0o700)  # a rename alone would replace an empty folder
        except FileExistsError as error:
            twin.unlink()  # the folder belongs to someone else
            raise _exists_error(target) from error
        self.tenant_folder.rename(target)

    def add_file(self, path: Path, text: str) -> None:
        """Write a file below `<data>` that only its owner can read.

        Raises:
            TenantryError: the file exists.
        """
        twin = self._write_twin(path, text)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _write_new(path, text)
        except FileExistsError as error:
            twin.unlink()  # the file belongs to someone else, whatever its content
            raise _exists_error(path) from error

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Commit what was created: it stays even if the process is killed after this call.

        If the block fails, what was created is removed after all.
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
        """Record that a file is about to be created; its content tells it from another's file."""
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
    """Remove the folders of processes that have ended."""
    for folder in parent.iterdir():
        with suppress(OSError):  # a process works in it, or it is another user's
            lock = lock_exclusively(folder)
            try:
                _remove(folder)
            finally:
                os.close(lock)


def _remove(folder: Path) -> None:
    """Remove a folder of the staging area, and what its process created and did not commit."""
    created, data_dir = folder / _CREATED, folder.parent.parent
    for twin in [path for path in created.rglob("*") if path.is_file()]:
        path = data_dir / twin.relative_to(created)
        is_ours = _has_content_of(twin, path)
        if path.name == RESTORING and is_ours:
            shutil.rmtree(path.parent)
        elif path.name == RESTORING:
            with suppress(OSError):
                path.parent.rmdir()  # the process was killed before it moved the tenant's folder
        elif is_ours:
            path.unlink()
    shutil.rmtree(folder)


def _has_content_of(twin: Path, path: Path) -> bool:
    """Whether a file has its twin's content, or a killed process had not written to it yet."""
    try:
        content = path.read_bytes()
    except OSError:  # what cannot be read is not deleted either
        return False
    return content == twin.read_bytes() or (not content and path.name != RESTORING)
