"""Creates the engine of one tenant: its pool, driver options and error translation.

This module and the ones that it uses import SQLAlchemy, which takes 0.3 s. Import it only when an
engine is needed.
"""

import logging
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.engine import ExceptionContext, ExecutionContext
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from tenantry.database.budget import ConnectionBudget
from tenantry.database.errors import DatabaseDownError, DatabaseFullError
from tenantry.database.file_connector import FILE_IDENTITY, FileConnector, file_identity
from tenantry.database.pool import BudgetPool
from tenantry.database.server_connector import ServerConnector
from tenantry.errors import one_line

BUSY_TIMEOUT_S = 5.0
"""How long a write to SQLite waits for another write to finish."""

SERVER_OPTIONS = {
    "connect_timeout": 2,  # seconds; the minimum of libpq
    "keepalives_idle": 5,  # seconds
    "keepalives_interval": 2,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}
"""libpq's options against an unreachable server. A query notices within 10 s that its packets
vanish; by default, that takes Linux about 15 minutes. While the server machine acknowledges packets
but the server is frozen, a query waits. Only `connect_timeout` applies then."""

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
_SQLITE_PRIMARY_CODE = 0xFF
"""Mask for the primary result code in an extended one (https://sqlite.org/rescode.html)."""

_POSTGRES_FULL = {"53100"}  # disk_full
_POSTGRES_DOWN = {
    "25006",  # read_only_sql_transaction: a standby
    "53200",  # out_of_memory
    "53300",  # too_many_connections
}

_NOTE_QUERY = "tenantry_note_query"  # execution option of an engine

_logger = logging.getLogger(__name__)

NoteQuery = Callable[[int], None]


def make_engine(
    owner: str, url_text: str, budget: ConnectionBudget, note_query: NoteQuery | None = None
) -> Engine:
    """Return an engine that has not connected yet; `close_engine` closes it.

    Args:
        owner: the tenant's name.
        url_text: the tenant's `DATABASE_URI`.
        budget: the connection budget of the process.
        note_query: called with the nanoseconds of each query, failed ones included.
    """
    url = make_url(url_text)
    if url.get_backend_name() != "sqlite":
        engine = _server_engine(owner, url, budget)
    elif is_in_memory(url):
        engine = _memory_engine(url, budget)
    else:
        engine = _file_engine(owner, url, budget)
    if note_query is not None:
        _time_queries(engine, note_query)
    event.listen(engine, "handle_error", lambda error: _translate(owner, error), retval=True)
    return engine


def close_engine(engine: Engine) -> None:
    """Close idle connections now and others at their check-in. Idempotent."""
    if isinstance(engine.pool, BudgetPool):
        engine.pool.retire()
    else:
        engine.dispose()


def connect_arguments(owner: str, url: URL) -> dict[str, Any]:
    """Return the driver options that the URL does not set itself."""
    options: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        options = {"timeout": BUSY_TIMEOUT_S, "factory": _SqliteConnection}
    elif url.get_driver_name() == "psycopg":
        options = SERVER_OPTIONS | {"application_name": f"tenantry {owner}"}
    return {key: value for key, value in options.items() if key not in url.query}


def is_in_memory(url: URL) -> bool:
    """Return whether a SQLite URL names no file."""
    name = (url.database or "").removeprefix("file:")
    return name in ("", ":memory:") or url.query.get("mode") == "memory"


class _SqliteConnection(sqlite3.Connection):
    """Supports weak references, which tell the pool when a detached connection is dropped."""


def _server_engine(owner: str, url: URL, budget: ConnectionBudget) -> Engine:
    connector = ServerConnector(owner, str(url.password or ""))
    engine = create_engine(
        url,
        poolclass=BudgetPool,
        budget=budget,
        owner=owner,
        connector=connector,
        connect_args=connect_arguments(owner, url),
    )
    connector.probe = lambda: cast("BudgetPool", engine.pool).probe()
    return engine


def _file_engine(owner: str, url: URL, budget: ConnectionBudget) -> Engine:
    path = Path(str(url.database).removeprefix("file:")).absolute()
    engine = create_engine(
        url,
        poolclass=BudgetPool,
        budget=budget,
        owner=owner,
        connector=FileConnector(owner, path),
        connect_args=connect_arguments(owner, url),
    )

    def set_up(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        connection.execute("PRAGMA foreign_keys = ON").close()
        connection.execute("PRAGMA journal_mode = WAL").close()  # readers do not block the writer
        if identity := file_identity(path):
            record.info[FILE_IDENTITY] = identity

    event.listen(engine, "connect", set_up)
    return engine


def _memory_engine(url: URL, budget: ConnectionBudget) -> Engine:
    """Return the engine of an in-memory database: one connection, as long-lived as the engine.

    It does not count in the budget, because closing it would lose the data.
    """
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=budget.wait_s,
        connect_args={"check_same_thread": False},
    )

    def set_up(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        connection.execute("PRAGMA foreign_keys = ON").close()

    event.listen(engine, "connect", set_up)
    return engine


def _time_queries(engine: Engine, note_query: NoteQuery) -> None:
    """Call `note_query` after each query.

    This replaces methods of the engine's own dialect. SQLAlchemy's cursor events would do, but an
    engine that has any costs a request 40 µs more. A `do_execute` listener would hide those of an
    endpoint. The execution option excludes SQLAlchemy's own set-up queries, which have none.
    """
    engine.update_execution_options(**{_NOTE_QUERY: note_query})
    dialect = engine.dialect
    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        setattr(dialect, name, partial(_timed, getattr(dialect, name)))


def _timed(execute: Callable[..., None], *arguments: Any) -> None:
    context: ExecutionContext | None = arguments[-1]
    note_query = None if context is None else context.execution_options.get(_NOTE_QUERY)
    if note_query is None:
        execute(*arguments)
        return
    began_ns = time.perf_counter_ns()
    try:
        execute(*arguments)
    finally:
        note_query(time.perf_counter_ns() - began_ns)


def _translate(owner: str, context: ExceptionContext) -> BaseException | None:
    """Return the error to raise if the database is at fault; None leaves the original one."""
    error = context.original_exception
    code: int | str | None = getattr(error, "sqlstate", None)
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & _SQLITE_PRIMARY_CODE
    translated: DatabaseDownError | None = None
    if code in _SQLITE_FULL | _POSTGRES_FULL:
        translated = DatabaseFullError()
    elif context.is_disconnect or code in _SQLITE_DOWN | _POSTGRES_DOWN:
        translated = DatabaseDownError(1)
    if translated is not None:
        _logger.error("database.failed", extra={"tenant": owner, "reason": one_line(error)})
    return translated
