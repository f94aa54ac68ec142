"""Prevents two processes from migrating a database at the same time.

For PostgreSQL, Tenantry uses an advisory lock. For other engines, Tenantry locks a file, which
works on one machine. Both kinds of locks are released when the process ends.

Behind a connection pooler, a session lock would stay with a server process that the pooler gives to
another client. Therefore, a second connection holds the lock, in a transaction that lasts as long
as the migrations. That transaction has no snapshot between its statements, so that
`CREATE INDEX CONCURRENTLY` does not wait for the transaction.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sqlalchemy import Connection

from tenantry.database.pooler import is_pooled

POLL_S = 0.1
"""Seconds between two attempts to get the lock.

A query that waits for an advisory lock keeps a transaction open. If the process that holds the lock
runs `CREATE INDEX CONCURRENTLY`, the statement waits for this transaction forever. Therefore,
Tenantry polls for the lock.
"""

_LOCK_KEY = "hashtextextended('tenantry.migrations.' || coalesce(current_schema(), ''), 0)"
"""The key of the advisory lock, as an SQL expression.

The key of the lock includes the schema, because two tenants may have schemas in the same database.
"""

_HOLDER_QUERY = f"""
    SELECT pid, application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (classid::bigint << 32) | objid::bigint = {_LOCK_KEY}
"""  # noqa: S608 - the query contains only constants


class DatabaseLockedError(Exception):
    """Another process is migrating the same database, and did not finish in time."""


@contextmanager
def migration_lock(connection: Connection, lock_file: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock of a database during the `with` block.

    On a direct connection to PostgreSQL, the lock is held until the connection is closed.

    Args:
        connection: an open connection without a transaction.
        lock_file: the file to lock for engines other than PostgreSQL.
        timeout_s: maximum time to wait for the lock.

    Raises:
        DatabaseLockedError: the lock was not free in time. The text of the error names the process
            that holds the lock.
    """
    if connection.dialect.name == "postgresql":
        lock = _lock_pooled if _is_pooled(connection) else _lock_session
        with lock(connection, timeout_s):
            yield
    else:
        # The lock file is never removed, because another process may already be waiting for its
        # lock.
        with lock_file.open("a+", encoding="utf-8") as file:
            _lock_file(file, timeout_s)
            yield


def _is_pooled(connection: Connection) -> bool:
    pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    connection.rollback()
    return is_pooled(connection.connection.driver_connection, pid)


@contextmanager
def _lock_pooled(connection: Connection, timeout_s: float) -> Iterator[None]:
    with connection.engine.connect() as holder:

        def try_lock() -> bool:
            lift_timeouts(holder)
            holder.exec_driver_sql(f"SELECT {_name_setting(is_local=True)}")
            result = holder.exec_driver_sql(f"SELECT pg_try_advisory_xact_lock({_LOCK_KEY})")
            is_locked = bool(result.scalar())
            if not is_locked:
                holder.rollback()
            return is_locked

        _wait_for_lock(try_lock, lambda: _find_holder(connection), timeout_s)
        yield


@contextmanager
def _lock_session(connection: Connection, timeout_s: float) -> Iterator[None]:
    settings = [
        _name_setting(is_local=False),
        # Remove the timeout of statements outside the migration's transaction.
        "set_config('statement_timeout', '0', false)",
    ]
    if (connection.dialect.server_version_info or (0,)) >= (14,):
        # If this process is killed, the server notices it within a second.
        settings.append("set_config('client_connection_check_interval', '1000', false)")
    # SQLAlchemy would compile a `text()` again for each database.
    connection.exec_driver_sql(f"SELECT {', '.join(settings)}")

    def try_lock() -> bool:
        result = connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({_LOCK_KEY})")
        is_locked = bool(result.scalar())
        connection.commit()
        return is_locked

    _wait_for_lock(try_lock, lambda: _find_holder(connection), timeout_s)
    yield


def _name_setting(*, is_local: bool) -> str:
    """Return an SQL expression that sets the name of the current process on the server."""
    name = f"tenantry db, process {os.getpid()}"
    return f"set_config('application_name', '{name}', {str(is_local).lower()})"


def _find_holder(connection: Connection) -> str:
    row = connection.exec_driver_sql(_HOLDER_QUERY).first()
    connection.rollback()
    return "" if row is None else f"{row.application_name} ({row.pid})"


def lift_timeouts(connection: Connection) -> None:
    """Remove the server's timeouts from the current transaction; Tenantry has its own limit.

    The timeouts of a role or a URL are intended for requests. The setting `lock_timeout` stays in
    effect.
    """
    names = ["statement_timeout", "idle_in_transaction_session_timeout"]
    if (connection.dialect.server_version_info or (0,)) >= (17,):
        names.append("transaction_timeout")
    calls = ", ".join(f"set_config('{name}', '0', true)" for name in names)
    connection.exec_driver_sql(f"SELECT {calls}")


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
    # If the disk is full, the lock still works, but the lock file does not name the process.
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
                f"{find_holder() or 'another process'} locks this database and did not finish "
                f"in {timeout_s:g} s; wait for that process or end it, and then try again"
            )
        time.sleep(POLL_S)
