"""The database that a capsule is restored into, in a file: not there before, nor after a failure.

One restore at a time makes a file; what one that was killed left is removed by the next.
"""

import os
import shutil
from pathlib import Path
from typing import Self

from sqlalchemy import URL

from tenantry.capsules.locks import lock, turn
from tenantry.errors import TenantryError


class DatabaseError(TenantryError):
    """A database cannot be made, or is not what a restored tenant needs."""


def is_server_database(url: URL) -> bool:
    """Whether the database is a server's, not a file."""
    return url.get_backend_name() != "sqlite"


class NewDatabase:
    """A database that is to be: empty, until the end of a `with` block, and kept or gone after it.

    By itself it is the default one, a file in the tenant's folder, with which it comes and goes.

    Args:
        path: the file.
    """

    folder: Path | None
    """Where it takes room; None: on a server."""

    def __init__(self, path: Path) -> None:
        self.url = URL.create("sqlite", database=str(path.absolute()))
        """Where it is made."""
        self.folder = path.parent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None: ...

    def note(self) -> None:
        """Remember what its migrations have made."""

    def keep(self) -> None:
        """Let it stay, unless the block fails after all; who comes next does not remove it.

        Raises:
            TenantryError: it cannot.
        """


class NewDatabaseFile(NewDatabase):
    """A SQLite file elsewhere: made in a folder beside it, until the end of a `with` block.

    Args:
        url: names the file.

    Raises:
        DatabaseError: it names none.
    """

    def __init__(self, url: URL) -> None:
        if not url.database or url.database.startswith((":memory:", "file:")) or url.query:
            shown = url.render_as_string(hide_password=True)
            raise DatabaseError(f"{shown}: name a file, and nothing else, for a SQLite database.")
        self._path = Path(url.database).absolute()
        self._building = self._path.with_name(f".{self._path.name}.restoring") / self._path.name
        self._is_kept = False
        super().__init__(self._building)

    def __enter__(self) -> Self:
        if not self._path.parent.is_dir():
            text = f"{self._path.parent} is no folder; make it, or name a file elsewhere."
            raise DatabaseError(text)
        place = self._building.parent
        try:
            with turn(self._path.parent):
                if place.exists():
                    os.close(lock(place))  # nobody works in it
                    self._clear()
                if os.path.lexists(self._path):
                    raise DatabaseError(f"{self._path} is there already; name a new file.")
                place.mkdir(mode=0o700)
                self._lock = lock(place)
        except BlockingIOError as error:
            text = f"another restore is making {self._path}; wait for it, or name another file."
            raise DatabaseError(text) from error
        except OSError as error:
            raise DatabaseError(f"cannot make {place}: {error.strerror}.") from error
        return self

    def _clear(self) -> None:
        """Remove what is not kept, here or by a restore that was killed."""
        is_there = self._path.exists() and self._building.exists()
        if is_there and self._path.samefile(self._building):
            self._path.unlink()
        shutil.rmtree(self._building.parent)

    def keep(self) -> None:
        """Give it its name."""
        if self._building.exists():  # a tenant may have no tables
            try:
                os.link(self._building, self._path)
            except FileExistsError as error:
                raise DatabaseError(f"{self._path} is there by now; name a new file.") from error
            self._is_kept = True
            self._building.unlink()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is not None and self._is_kept:
                self._path.unlink(missing_ok=True)
            self._clear()
        except OSError as left:
            text = f"{left.filename} could not be removed: {left.strerror}; remove it yourself."
            raise DatabaseError(text) from error
        finally:
            os.close(self._lock)
