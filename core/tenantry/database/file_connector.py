"""Opens and checks connections to a SQLite file, and detects whether the file was deleted."""

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy.pool import ConnectionPoolEntry

from tenantry.database.errors import DatabaseDownError

FILE_IDENTITY = "tenantry.file_identity"
"""Key in `ConnectionPoolEntry.info` of the device and inode of the opened file."""

RETRY_AFTER_S = 10

_logger = logging.getLogger(__name__)


class FileConnector:
    """Opens connections to the SQLite file of a tenant.

    SQLite creates a missing file, so an empty database would silently replace a deleted database.
    Therefore, a marker file, `<file>.made`, records that the database existed. All processes see
    the marker file, even after a restart. If the marker file cannot be written, only the current
    process remembers that the database existed.

    Args:
        owner: the tenant's name.
        path: the SQLite file.
    """

    def __init__(self, owner: str, path: Path) -> None:
        self._owner = owner
        self._path = path
        self._marker = path.with_name(f"{path.name}.made")
        self._existed = False
        self._is_marked = False
        self._is_logged = False

    def check_available(self, *, must_open: bool) -> None:
        """Check that the SQLite file has not been lost.

        Raises:
            DatabaseDownError: the SQLite file existed and is missing now.
        """
        if not must_open or file_identity(self._path):
            return
        # An operator who also deletes the marker file wants an empty database.
        was_lost = (self._existed and not self._is_marked) or file_identity(self._marker)
        if not was_lost:
            return
        if not self._is_logged:
            remedy = f"restore it, or also delete {self._marker.name} to start with an empty one"
            reason = f"{self._path} is gone; {remedy}"
            _logger.error("database.down", extra={"tenant": self._owner, "reason": reason})
        self._is_logged = True
        raise DatabaseDownError(RETRY_AFTER_S)

    def is_usable(self, record: ConnectionPoolEntry, _: float) -> bool:
        """Whether the path still refers to the file that the connection opened."""
        identity = file_identity(self._path)
        if identity is None or record.info.setdefault(FILE_IDENTITY, identity) != identity:
            return False
        if not self._existed:
            self._write_marker()
        return True

    def connect(self, open_connection: Callable[[], Any]) -> Any:
        """Open the SQLite file, unless it is lost.

        Raises:
            DatabaseDownError: the SQLite file existed and is missing now.
        """
        self.check_available(must_open=True)
        return open_connection()

    def close(self, _: Any, close_connection: Callable[[], None]) -> None:
        """Close a connection to the SQLite file."""
        close_connection()

    def _write_marker(self) -> None:
        self._existed = True
        text = f"While this file exists, Tenantry does not create an empty {self._path.name}.\n"
        # Writing the marker file may fail, for example if the disk is full.
        with suppress(OSError):
            self._marker.write_text(text)
            self._is_marked = True


def file_identity(path: Path) -> tuple[int, int] | None:
    """Return the device and the inode of a file, or None if the file does not exist."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino
