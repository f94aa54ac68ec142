"""One migration of a database at a time: PostgreSQL's advisory locks, locked files elsewhere.

Whoever holds a lock and dies lets go of it: both end with the connection or the process.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection

POLL_S = 0.1
"""How often a lock is asked for again. Asking, unlike waiting inside PostgreSQL, keeps no
transaction open, for which `CREATE INDEX CONCURRENTLY` of the holder would wait for ever."""

_KEY = "hashtextextended('tenantry.migrations.' || coalesce(current_schema(), ''), 0)"
"""An advisory lock is one database's; two tenants may have a schema each of one database."""

_HOLDER = f"""
    SELECT pid, application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (classid::bigint << 32) | objid::bigint = {_KEY}
"""  # noqa: S608 - from constants


class Wanted(Protocol):
    """What a lock has to know of a request."""

    @property
    def tenant(self) -> str:
        """Whose database."""
        ...

    @property
    def lock_file(self) -> str:
        """The file to lock where the engine has no lock of its own."""
        ...

    @property
    def lock_wait_s(self) -> float:
        """How long to wait for it, in seconds."""
        ...


class LockedError(Exception):
    """Somebody else migrates this database, and does not come to an end."""


@contextmanager
def locked(connection: Connection, wanted: Wanted) -> Iterator[None]:
    """Hold the lock of a tenant's database; on PostgreSQL until its connection closes.

    Raises:
        LockedError: it is not free in time; the text says who holds it.
    """
    if connection.dialect.name == "postgresql":
        _lock_postgres(connection, wanted)
        yield
    else:
        with _locked_file(wanted):
            yield


def _lock_postgres(connection: Connection, wanted: Wanted) -> None:
    settings = {"application_name": f"tenantry db, process {os.getpid()}"}
    if (connection.dialect.server_version_info or (0,)) >= (14,):
        # A killed run: its statement ends now, not when it would first have something to say.
        settings["client_connection_check_interval"] = "1000"
    values = ", ".join(f"set_config('{key}', '{value}', false)" for key, value in settings.items())
    deadline = time.monotonic() + wanted.lock_wait_s
    while not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({_KEY}), {values}").scalar():
        if time.monotonic() > deadline:
            row = connection.exec_driver_sql(_HOLDER).first()
            holder = "somebody" if row is None else f"{row[1]} ({row[0]})"
            raise LockedError(_held_by(wanted, holder))
        connection.rollback()
        time.sleep(POLL_S)
    connection.commit()  # the settings stay


@contextmanager
def _locked_file(wanted: Wanted) -> Iterator[None]:
    with Path(wanted.lock_file).open(
        "a+", encoding="utf-8"
    ) as file:  # never removed: others may wait for it
        deadline = time.monotonic() + wanted.lock_wait_s
        while not _try_file(file.fileno()):
            if time.monotonic() > deadline:
                file.seek(0)
                raise LockedError(_held_by(wanted, file.read(100) or "somebody"))
            time.sleep(POLL_S)
        with suppress(OSError):  # a full disk: nobody will know who we are
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()
        yield


def _try_file(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _held_by(wanted: Wanted, holder: str) -> str:
    return (
        f"{holder} migrates this database and has not ended in {wanted.lock_wait_s:g} s; wait for "
        "it, or end it, and try again"
    )
