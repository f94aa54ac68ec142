"""Creates a tenant's SQLAlchemy engine with its pool, driver options and error translation.

This module imports SQLAlchemy, which takes 0.3 s. Therefore, import this module only when you need
an engine.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.engine import ExceptionContext, ExecutionContext
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from tenantry.database.budget import ConnectionBudget
from tenantry.database.errors import (
    READ_ONLY,
    READ_ONLY_RETRY_AFTER_S,
    DatabaseDownError,
    DatabaseFullError,
    UnstorableTextError,
)
from tenantry.database.file_connector import FILE_IDENTITY, FileConnector, file_identity
from tenantry.database.options import NO_OPTIONS, driver_options, engine_options
from tenantry.database.pool import BudgetPool
from tenantry.database.pooler import is_pooled
from tenantry.database.server_connector import ServerConnector
from tenantry.database.url import is_in_memory
from tenantry.errors import one_line

BUSY_TIMEOUT_S = 5.0
"""Maximum seconds that a write to SQLite waits for another write."""

SERVER_OPTIONS = {
    "client_encoding": "utf8",  # otherwise, psycopg returns bytes for text in SQL_ASCII
    "connect_timeout": 2,  # seconds; the minimum that libpq allows
    "keepalives_idle": 5,  # seconds
    "keepalives_interval": 2,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}
"""Options of libpq: the encoding, and the detection of an unreachable server.

If packets to the server are lost, a query fails within 10 s. By default, Linux takes 15 minutes. If
only the server process is frozen, its machine still acknowledges packets, and a query can wait
forever. Against a frozen server process, only `connect_timeout` has an effect.
"""

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
"""Mask for the primary part of a SQLite result code (https://sqlite.org/rescode.html)."""

_POSTGRES_FULL = {"53100"}  # disk_full
_POSTGRES_DOWN = {
    "53200",  # out_of_memory
    "53300",  # too_many_connections
}

_POSTGRES_READ_ONLY = {"25006"}  # read_only_sql_transaction, for example from a standby server

_UNSTORABLE = {"22021", "22P05"}  # character_not_in_repertoire, untranslatable_character
_NUL = "cannot contain NUL"  # psycopg raises this error itself, without a SQLSTATE

_NOTE_QUERY = "tenantry_note_query"  # name of an execution option

_logger = logging.getLogger(__name__)

NoteQuery = Callable[[int], None]


def make_engine(
    owner: str,
    url_text: str,
    budget: ConnectionBudget,
    note_query: NoteQuery | None = None,
    *,
    options: Mapping[str, Any] = NO_OPTIONS,
) -> Engine:
    """Return an engine without a connection. Call `close_engine` to close the engine.

    Args:
        owner: the tenant's name.
        url_text: the tenant's `DATABASE_URI`.
        budget: the connection budget of the process.
        note_query: a function that receives the duration of each query in nanoseconds, including
            failed queries.
        options: the tenant's `DATABASE_OPTIONS`.
    """
    url = make_url(url_text)
    if url.get_backend_name() != "sqlite":
        engine = _server_engine(owner, url, budget, options)
    elif is_in_memory(url):
        engine = _memory_engine(url, budget, options)
    else:
        engine = _file_engine(owner, url, budget, options)
    observe_engine(owner, engine, note_query)
    return engine


def observe_engine(owner: str, engine: Engine, note_query: NoteQuery | None) -> None:
    """Make an engine report the duration of its queries, and translate its errors."""
    if note_query is not None:
        _time_queries(engine, note_query)
    event.listen(engine, "handle_error", lambda error: _translate(owner, error), retval=True)


def close_engine(engine: Engine) -> None:
    """Close all idle connections, and each other connection as soon as it is returned."""
    if isinstance(engine.pool, BudgetPool):
        engine.pool.retire()
    else:
        engine.dispose()


def connect_arguments(
    owner: str, url: URL, options: Mapping[str, Any] = NO_OPTIONS
) -> dict[str, Any]:
    """Return the tenant's driver options and the defaults, except options that the URL sets."""
    defaults: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        defaults = {"timeout": BUSY_TIMEOUT_S, "factory": _SqliteConnection}
    elif url.get_driver_name() == "psycopg":
        defaults = SERVER_OPTIONS | {"application_name": f"tenantry {owner}"}
    defaults = {key: value for key, value in defaults.items() if key not in url.query}
    return defaults | driver_options(url, options)


class _SqliteConnection(sqlite3.Connection):
    """A SQLite connection that supports weak references, so that the pool notices its deletion."""


def _server_engine(
    owner: str, url: URL, budget: ConnectionBudget, options: Mapping[str, Any]
) -> Engine:
    connector = ServerConnector(owner, str(url.password or ""))
    engine = create_engine(
        url,
        poolclass=BudgetPool,
        budget=budget,
        owner=owner,
        connector=connector,
        connect_args=connect_arguments(owner, url, options),
        **engine_options(url, options),
    )
    if "prepare_threshold" not in driver_options(url, options):
        event.listen(engine, "connect", _PreparedStatements())
    connector.probe = lambda: cast("BudgetPool", engine.pool).probe()
    return engine


class _PreparedStatements:
    """Turns prepared statements off on connections that go through a pooler.

    A pooler in transaction mode sends a prepared statement to a server process that does not know
    the statement, or that knows another statement of the same name. A query on the first connection
    of an engine detects a pooler. The class is thread-safe, because connections that are opened at
    the same time get the same result.
    """

    def __init__(self) -> None:
        self._is_pooled: bool | None = None

    def __call__(self, connection: Any, _: ConnectionPoolEntry) -> None:
        if self._is_pooled is None and hasattr(connection, "prepare_threshold"):
            pid = connection.execute("SELECT pg_backend_pid()").fetchone()[0]
            connection.rollback()
            self._is_pooled = is_pooled(connection, pid)
        if self._is_pooled:
            connection.prepare_threshold = None


def _file_engine(
    owner: str, url: URL, budget: ConnectionBudget, options: Mapping[str, Any]
) -> Engine:
    path = Path(str(url.database).removeprefix("file:")).absolute()
    engine = create_engine(
        url,
        poolclass=BudgetPool,
        budget=budget,
        owner=owner,
        connector=FileConnector(owner, path),
        connect_args=connect_arguments(owner, url, options),
        **engine_options(url, options),
    )

    def set_up(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        connection.execute("PRAGMA foreign_keys = ON").close()
        # In WAL mode, reads do not block writes.
        connection.execute("PRAGMA journal_mode = WAL").close()
        if identity := file_identity(path):
            record.info[FILE_IDENTITY] = identity

    event.listen(engine, "connect", set_up)
    return engine


def _memory_engine(url: URL, budget: ConnectionBudget, options: Mapping[str, Any]) -> Engine:
    """Return the engine of a database in memory, which has exactly one connection.

    Closing the connection would delete the data, so the connection budget does not include the
    connection.
    """
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=budget.wait_s,
        connect_args={"check_same_thread": False} | driver_options(url, options),
        **engine_options(url, options),
    )

    def set_up(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        connection.execute("PRAGMA foreign_keys = ON").close()

    event.listen(engine, "connect", set_up)
    return engine


def _time_queries(engine: Engine, note_query: NoteQuery) -> None:
    """Make the engine call `note_query` after each query.

    The engine's dialect gets new methods that measure the time. SQLAlchemy's cursor events would
    add 40 µs to each request, and a `do_execute` listener would hide listeners of endpoints.
    Queries that SQLAlchemy itself sends do not have the execution option, so they are not counted.
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
    """Return the error to raise if the database is at fault, or None to keep the original error."""
    error = context.original_exception
    code: int | str | None = getattr(error, "sqlstate", None)
    if code in _UNSTORABLE or isinstance(error, UnicodeEncodeError) or _NUL in str(error):
        return UnstorableTextError()
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & _SQLITE_PRIMARY_CODE
    translated: DatabaseDownError | None = None
    if code in _SQLITE_FULL | _POSTGRES_FULL:
        translated = DatabaseFullError()
    elif context.is_disconnect or code in _SQLITE_DOWN | _POSTGRES_DOWN:
        translated = DatabaseDownError(1)
    elif code in _POSTGRES_READ_ONLY:
        translated = DatabaseDownError(READ_ONLY_RETRY_AFTER_S, READ_ONLY)
    if translated is not None:
        _logger.error("database.failed", extra={"tenant": owner, "reason": one_line(error)})
    return translated
