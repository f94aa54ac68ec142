"""The database of a restored tenant, as a SQLite file: absent before, and absent after a failure.

One restore at a time creates a file. The next restore of that file removes what a killed one left.
"""

import os
import shutil
from pathlib import Path
from typing import Self

from sqlalchemy import URL

from tenantry.capsules.capsule import as_sentence
from tenantry.capsules.locks import folder_lock, lock_exclusively
from tenantry.errors import TenantryError


class DatabaseError(TenantryError):
    """A database cannot be created, or cannot be the one of a restored tenant."""


def is_server_database(url: URL) -> bool:
    """Whether the database is on a server, not in a SQLite file."""
    return url.get_backend_name() != "sqlite"


class NewDatabase:
    """An empty database, until the end of a `with` block; removed unless `commit` was called.

    This class is for the default one: a file in the tenant's folder, which the staging area
    removes together with that folder.

    Args:
        path: the file.
    """

    disk_folder: Path | None
    """A folder on the disk to which the rows are written; None for a server."""

    def __init__(self, path: Path) -> None:
        self.url = URL.create("sqlite", database=str(path.absolute()))
        """Where migrations and rows go during the block."""
        self.disk_folder = path.parent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None: ...

    def record_migrated(self) -> None:
        """Note what the migrations have created, for its removal."""

    def commit(self) -> None:
        """Keep the database, unless the rest of the block fails; a later restore leaves it alone.

        Raises:
            DatabaseError: it cannot be kept.
        """


class NewDatabaseFile(NewDatabase):
    """A SQLite file outside the tenant's folder, created in a hidden folder beside its path.

    Args:
        url: names the file.

    Raises:
        DatabaseError: the URL does not name a file, or has options.
    """

    def __init__(self, url: URL) -> None:
        if not url.database or url.database.startswith((":memory:", "file:")) or url.query:
            shown = url.render_as_string(hide_password=True)
            raise DatabaseError(f"{shown}: name a file, without options, as sqlite:///PATH.")
        self._path = Path(url.database).absolute()
        self._building_folder = self._path.with_name(f".{self._path.name}.restoring")
        self._building = self._building_folder / self._path.name
        self._is_committed = False
        super().__init__(self._building)

    def __enter__(self) -> Self:
        parent = self._path.parent
        if not parent.is_dir():
            raise DatabaseError(f"there is no folder {parent}; create it, or name another file.")
        try:
            with folder_lock(parent):
                if self._building_folder.exists():
                    # The folder's process has ended.
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
        """Remove the hidden folder, and the file if a killed `commit` had just linked it."""
        is_linked = self._path.exists() and self._building.exists()
        if is_linked and self._path.samefile(self._building):
            self._path.unlink()
        shutil.rmtree(self._building_folder)

    def commit(self) -> None:
        """Give the file its name."""
        if not self._building.exists():
            return  # a tenant without tables has no file
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
    """Return the error of a failed cleanup, which also tells the error that led to the cleanup."""
    return DatabaseError(text if error is None else f"{as_sentence(error)}\n{text}")
