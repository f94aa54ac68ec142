"""Creates the SQLite database of a restored tenant.

If the restore fails, no database file remains on disk.

Two restores cannot create the same database file at the same time. If a restore is killed, the next
restore to the same database file removes the unfinished file.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL

from tenantry.capsules.capsule import as_sentence
from tenantry.capsules.locks import folder_lock, lock_exclusively
from tenantry.database.options import NO_OPTIONS
from tenantry.errors import TenantryError


class DatabaseError(TenantryError):
    """The database of a restored tenant cannot be created or used."""


def is_server_database(url: URL) -> bool:
    """Whether a URL names a database on a server, and not a SQLite file."""
    return url.get_backend_name() != "sqlite"


class NewDatabase:
    """The new database of a restored tenant. Unless `commit` is called, the database is removed.

    This class creates the default SQLite file. Subclasses create other databases. The default
    SQLite file is in the tenant's folder, which the staging area removes if the restore fails.

    Args:
        path: the path of the SQLite file.
        options: the tenant's `DATABASE_OPTIONS`.
    """

    disk_folder: Path | None
    """A folder on the disk of the database; None for a database on a server."""

    def __init__(self, path: Path, options: Mapping[str, Any] = NO_OPTIONS) -> None:
        self.url = URL.create("sqlite", database=str(path.absolute()))
        """The URL of the new database, which is temporary if `commit` moves the database."""
        self.options = options
        self.disk_folder = path.parent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None: ...

    def record_migrated(self) -> None:
        """Record what the migrations created, so that a failed restore can remove it."""

    def commit(self) -> None:
        """Keep the database after the `with` block, unless the block fails later.

        After a call of `commit`, later restores do not remove the database.

        Raises:
            DatabaseError: the database cannot be kept.
        """


class NewDatabaseFile(NewDatabase):
    """A new SQLite database outside of the tenant's folder.

    Until `commit` is called, the database is in a hidden folder beside its final path.

    Args:
        url: the URL of the SQLite file.
        options: the tenant's `DATABASE_OPTIONS`.

    Raises:
        DatabaseError: the URL does not name a file, or has options.
    """

    def __init__(self, url: URL, options: Mapping[str, Any] = NO_OPTIONS) -> None:
        if not url.database or url.database.startswith((":memory:", "file:")) or url.query:
            shown = url.render_as_string(hide_password=True)
            raise DatabaseError(f"{shown}: name a file, without options, as sqlite:///PATH.")
        self._path = Path(url.database).absolute()
        self._building_folder = self._path.with_name(f".{self._path.name}.restoring")
        self._building = self._building_folder / self._path.name
        self._is_committed = False
        super().__init__(self._building, options)

    def __enter__(self) -> Self:
        parent = self._path.parent
        if not parent.is_dir():
            raise DatabaseError(f"there is no folder {parent}; create it, or name another file.")
        try:
            with folder_lock(parent):
                if self._building_folder.exists():
                    # The lock fails while the process that created the folder is running.
                    os.close(lock_exclusively(self._building_folder))
                    self._remove_building()
                if os.path.lexists(self._path):
                    raise DatabaseError(f"{self._path} already exists; name a new file.")
                self._building_folder.mkdir(mode=0o700)
                self._lock = lock_exclusively(self._building_folder)
        except BlockingIOError as error:
            text = f"another restore is creating {self._path}; wait for it, or name another file."
            raise DatabaseError(text) from error
        except OSError as error:
            text = f"cannot create {self._building_folder}: {error.strerror}."
            raise DatabaseError(text) from error
        return self

    def _remove_building(self) -> None:
        """Remove the hidden folder and, if a `commit` was killed, the linked database file."""
        is_linked = self._path.exists() and self._building.exists()
        if is_linked and self._path.samefile(self._building):
            self._path.unlink()
        shutil.rmtree(self._building_folder)

    def commit(self) -> None:
        """Link the database file to its final path."""
        if not self._building.exists():
            return  # without tables, there is no database file
        try:
            os.link(self._building, self._path)
        except FileExistsError as error:
            text = f"{self._path} was created in the meantime; name a new file."
            raise DatabaseError(text) from error
        self._is_committed = True
        self._building.unlink()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is not None and self._is_committed:
                self._path.unlink(missing_ok=True)
            self._remove_building()
        except OSError as failure:
            text = f"cannot remove {failure.filename}: {failure.strerror}; remove it yourself."
            raise cleanup_error(error, text) from error
        finally:
            os.close(self._lock)


def cleanup_error(error: BaseException | None, text: str) -> DatabaseError:
    """Return an error that describes a failed cleanup and the earlier error that led to it."""
    return DatabaseError(text if error is None else f"{as_sentence(error)}\n{text}")
