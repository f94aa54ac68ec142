"""The rows of a tenant's database, for capsules: what taking them out and putting them in share.

Knows SQLite and PostgreSQL through psycopg. Values leave as the driver has them: SQLite's are
numbers, texts and bytes, PostgreSQL's what Python has an exact type for, and its own text for the
rest. PostgreSQL reads texts as what a column is, so rows of SQLite go in as they are; SQLite gets
them in the forms in which SQLAlchemy stores them there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    CursorResult,
    Engine,
    NullPool,
    create_engine,
    event,
    inspect,
)

from tenantry.errors import TenantryError
from tenantry.migrations.version_table import with_connect_timeout

BUSY_TIMEOUT_MS = 30_000


class RowsError(TenantryError):
    """Rows do not fit where they should go, or the engine is none that is known here."""


@dataclass(frozen=True)
class Table:
    """A table, and those of its columns that are written, not computed."""

    name: str
    columns: tuple[str, ...]
    positions: Mapping[str, int] = field(default_factory=dict, hash=False)
    """The last number that was given to a row, by column; the row may be gone."""


def written(connection: Connection, table: str) -> tuple[str, ...]:
    """Return the columns of a table that are not computed."""
    columns = inspect(connection).get_columns(table)
    return tuple(one["name"] for one in columns if "computed" not in one)


def numbered(connection: Connection, table: str) -> int | None:
    """Return the last number that SQLite gave in a table with AUTOINCREMENT; None for another."""
    query = "SELECT count(*) FROM sqlite_master WHERE name = ? AND sql LIKE '%AUTOINCREMENT%'"
    if not connection.exec_driver_sql(query, (table,)).scalar():
        return None
    query = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?"
    return int(connection.exec_driver_sql(query, (table,)).scalar_one())


def engine_of(url: URL, begin: str) -> Engine:
    """Return an engine without a pool, for the caller's connections.

    Args:
        url: the database.
        begin: how a transaction begins on SQLite.

    Raises:
        RowsError: it cannot be read by another process, or the engine is not known here.
    """
    if url.get_backend_name() == "sqlite":
        name = (url.database or "").removeprefix("file:")
        if name in ("", ":memory:") or url.query.get("mode") == "memory":
            raise RowsError("a database in memory is there for its own process only")
        engine = create_engine(url, poolclass=NullPool)
        event.listen(engine, "connect", _leave_transactions_to_us)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
        return engine
    if url.drivername == "postgresql+psycopg":
        return create_engine(with_connect_timeout(url), poolclass=NullPool)
    raise RowsError(
        f"capsules know SQLite and postgresql+psycopg, not {url.drivername}; use its own tools"
    )


def run(connection: Connection, statement: str, **options: Any) -> "CursorResult[*tuple[Any, ...]]":
    """Run a statement that has no parameters: a `%` in it is one."""
    return connection.exec_driver_sql(
        statement, execution_options=options | {"no_parameters": True}
    )


def _leave_transactions_to_us(connection: Any, _: object) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")


def quoted(engine: Engine, name: str) -> str:
    """Return a name as it stands in a statement that `run` runs."""
    text = engine.dialect.identifier_preparer.quote_identifier(name)
    return text.replace("%%", "%")
