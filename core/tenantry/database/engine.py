"""Makes the engine of one tenant: its pool in the process's budget, its guard, its options.

This room and those that it stands on, `pool` and `guards`, import SQLAlchemy at their top: import
them when an engine is needed.
"""

import logging
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from tenantry.database.budget import ConnectionBudget
from tenantry.database.checkouts import Checkouts
from tenantry.database.errors import DatabaseDownError, DatabaseFullError
from tenantry.database.guards import FILE, FileGuard, ServerGuard, file_at
from tenantry.database.pool import BudgetPool

BUSY_TIMEOUT_S = 5.0
"""How long a write to SQLite waits for another one to end."""

SERVER_OPTIONS = {
    "connect_timeout": 2,  # seconds; libpq takes no less
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""What libpq does about a host that falls silent: noticed after 10 s, not after the system's
quarter of an hour. In seconds; the last in milliseconds. Of a server that is frozen on a host that
lives, `silence` knows."""

_SQLITE_FULL = {sqlite3.SQLITE_FULL}
_SQLITE_DOWN = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_READONLY,
}
_POSTGRES_FULL = {"53100"}  # disk_full
_POSTGRES_DOWN = {"25006", "53200", "53300"}  # read only (a standby), out of memory, of connections

_NOTE = "tenantry_note_query"  # an engine's execution option: is told how long each query took

_logger = logging.getLogger(__name__)


def make_engine(
    owner: str,
    url_text: str,
    budget: ConnectionBudget,
    uses: Checkouts | None = None,
    note_query: Callable[[int], None] | None = None,
) -> Engine:
    """Return an engine that has connected to nothing yet; `close_engine` ends it.

    Args:
        owner: the tenant's name.
        url_text: its `DATABASE_URI`.
        budget: where its connections count.
        uses: told which thread uses which connection.
        note_query: called after each query, good or not, with its nanoseconds.
    """
    url = make_url(url_text)
    uses = Checkouts() if uses is None else uses
    if url.get_backend_name() != "sqlite":
        engine = _server_engine(owner, url, budget, uses)
    elif is_in_memory(url):
        engine = _memory_engine(url, budget, uses)
    else:
        engine = _file_engine(owner, url, budget, uses)
    event.listen(engine, "handle_error", lambda context: _better(owner, context), retval=True)
    if note_query is not None:
        _time_queries(engine, note_query)
    return engine


def close_engine(engine: Engine) -> None:
    """Close what is idle, and each connection that comes back later. Idempotent."""
    if isinstance(engine.pool, BudgetPool):
        engine.pool.retire()
    else:
        engine.dispose()


def connect_arguments(owner: str, url: URL) -> dict[str, Any]:
    """Return what the driver is told beside the URL; the URL's own word wins."""
    if url.get_backend_name() == "sqlite":
        options: dict[str, Any] = {"timeout": BUSY_TIMEOUT_S, "factory": _SqliteConnection}
    elif url.get_driver_name() == "psycopg":
        options = SERVER_OPTIONS | {"application_name": f"tenantry {owner}"}
    else:
        options = {}
    return {key: value for key, value in options.items() if key not in url.query}


def _time_queries(engine: Engine, note: Callable[[int], None]) -> None:
    """Have `note` called after each query.

    By the methods of its own dialect, and not by events: an engine with listeners for them joins
    these to each connection that it lends, which costs a request 40 µs; and of those for
    `do_execute` the first that executes is the last that is called, an endpoint's own are not.
    """
    # An option, because SQLAlchemy's own first queries are without any: these are nobody's.
    engine.update_execution_options(**{_NOTE: note})
    dialect = engine.dialect
    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        setattr(dialect, name, partial(_timed, getattr(dialect, name)))


def _timed(execute: Callable[..., None], *arguments: Any) -> None:
    context = arguments[-1]
    note = None if context is None else context.execution_options.get(_NOTE)
    if note is None:
        execute(*arguments)
        return
    begun_ns = time.perf_counter_ns()
    try:
        execute(*arguments)
    finally:
        note(time.perf_counter_ns() - begun_ns)


def is_in_memory(url: URL) -> bool:
    """Whether a SQLite URL names no file."""
    name = (url.database or "").removeprefix("file:")
    return name in ("", ":memory:") or url.query.get("mode") == "memory"


class _SqliteConnection(sqlite3.Connection):
    """Can be referred to weakly: so the pool hears when a detached one is dropped."""


def _server_engine(owner: str, url: URL, budget: ConnectionBudget, uses: Checkouts) -> Engine:
    guard = ServerGuard(owner, str(url.password or ""))
    engine = create_engine(
        url,
        poolclass=BudgetPool,
        budget=budget,
        owner=owner,
        guard=guard,
        uses=uses,
        connect_args=connect_arguments(owner, url),
    )
    guard.probe = lambda: cast("BudgetPool", engine.pool).probe()
    if url.get_driver_name() == "psycopg":
        from tenantry.database import frozen_server as silence  # noqa: PLC0415 - it imports psycopg, which others need not have

        engine.dialect.connect = partial(silence.connect, guard)  # type: ignore[assignment,method-assign]
        engine.dialect.do_rollback = silence.roll_back  # type: ignore[assignment,method-assign]
    return engine


def _file_engine(owner: str, url: URL, budget: ConnectionBudget, uses: Checkouts) -> Engine:
    path = Path(str(url.database).removeprefix("file:")).absolute()
    engine = create_engine(
        url,
        poolclass=BudgetPool,
        budget=budget,
        owner=owner,
        guard=FileGuard(owner, path),
        uses=uses,
        connect_args=connect_arguments(owner, url),
    )

    def set_up(connection: Any, record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA journal_mode = WAL")  # readers and a writer do not block each other
        cursor.close()
        if file := file_at(str(path)):
            record.info[FILE] = file

    event.listen(engine, "connect", set_up)
    return engine


def _memory_engine(url: URL, budget: ConnectionBudget, uses: Checkouts) -> Engine:
    """Return the engine of a database in memory: one connection, never closed before the engine.

    It does not count in the budget: it holds no file and no place at a server, and cannot be
    opened again without losing what is in it.
    """
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=budget.wait_s,
        connect_args={"check_same_thread": False},
    )

    def set_up(connection: Any, _: ConnectionPoolEntry) -> None:
        connection.execute("PRAGMA foreign_keys = ON").close()

    event.listen(engine, "connect", set_up)
    event.listen(engine, "checkout", lambda _, record, proxy: uses.take(record))  # noqa: ARG005
    event.listen(engine, "checkin", lambda _, record: uses.give_back(record))
    return engine


def _better(owner: str, context: ExceptionContext) -> BaseException | None:
    """Return the answer to an error that is the database's fault; None for any other."""
    error = context.original_exception
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF or getattr(error, "sqlstate", None)
    better: DatabaseDownError | None = None
    if code in _SQLITE_FULL | _POSTGRES_FULL:
        better = DatabaseFullError()
    elif context.is_disconnect or code in _SQLITE_DOWN | _POSTGRES_DOWN:
        better = DatabaseDownError(1)
    if better is not None:
        reason = " ".join(str(error).split())
        _logger.error("database.failed", extra={"tenant": owner, "reason": reason})
    return better
