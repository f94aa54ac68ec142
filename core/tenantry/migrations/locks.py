"""Allows one migration of a database at a time.

PostgreSQL has advisory locks. For other engines, the lock is a locked file, which covers one
machine. Each kind of lock ends with the process that holds the lock.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sqlalchemy import Connection, text

POLL_S = 0.1
"""Time between two attempts to get the migration lock of a database. A query that waits for the
lock inside PostgreSQL would keep a transaction open, and the lock holder's `CREATE INDEX
CONCURRENTLY` would wait for the open transaction forever."""

_LOCK_KEY = text(
    "SELECT hashtextextended('tenantry.migrations.' || coalesce(current_schema(), ''), 0)"
)
"""Query for the key of the advisory lock. The key includes the schema, because two tenants may each
have a schema in one database."""

_TRY_LOCK = text("SELECT pg_try_advisory_lock(:key)")
_SET = text("SELECT set_config(:name, :value, false)")
_HOLDER = text("""
    SELECT pid, application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (classid::bigint << 32) | objid::bigint = :key
""")


class DatabaseLockedError(Exception):
    """Another process migrates the same database, and did not finish in time."""


@contextmanager
def migration_lock(connection: Connection, lock_file: Path, timeout_s: float) -> Iterator[None]:
    """Hold the migration lock of a database; on PostgreSQL, until the connection closes.

    Args:
        connection: an open connection without a transaction.
        lock_file: the file to lock if the engine is not PostgreSQL.
        timeout_s: seconds to wait for the lock.

    Raises:
        DatabaseLockedError: the lock is not free in time. The text names the holder.
    """
    if connection.dialect.name == "postgresql":
        _lock_postgres(connection, timeout_s)
        yield
    else:
        # The lock file is never removed, because another process may already wait for the same
        # file.
        with lock_file.open("a+", encoding="utf-8") as file:
            _lock_file(file, timeout_s)
            yield


def _lock_postgres(connection: Connection, timeout_s: float) -> None:
    settings = {"application_name": f"tenantry db, process {os.getpid()}"}
    if (connection.dialect.server_version_info or (0,)) >= (14,):
        # The server ends the statement of a killed process within a second.
        settings["client_connection_check_interval"] = "1000"
    for name, value in settings.items():
        connection.execute(_SET, {"name": name, "value": value})
    key = {"key": connection.scalar(_LOCK_KEY)}

    def try_lock() -> bool:
        is_locked = bool(connection.scalar(_TRY_LOCK, key))
        connection.commit()
        return is_locked

    def find_holder() -> str:
        row = connection.execute(_HOLDER, key).first()
        return "" if row is None else f"{row.application_name} ({row.pid})"

    _wait_for_lock(try_lock, find_holder, timeout_s)


def _lock_file(file: IO[str], timeout_s: float) -> None:
    def try_lock() -> bool:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def read_holder() -> str:
        file.seek(0)
        return file.read(100)

    _wait_for_lock(try_lock, read_holder, timeout_s)
    # On a full disk, for example, the lock works without the holder's name.
    with suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()


def _wait_for_lock(
    try_lock: Callable[[], bool], find_holder: Callable[[], str], timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    while not try_lock():
        if time.monotonic() > deadline:
            raise DatabaseLockedError(
                f"{find_holder() or 'another process'} migrates this database and did not finish "
                f"in {timeout_s:g} s; wait for it or end it, then try again"
            )
        time.sleep(POLL_S)
