"""Reading the rows of a tenant's database, all as of one moment, while the tenant serves.

SQLite, and PostgreSQL through psycopg. Values leave as the driver returns them: numbers, text and
bytes from SQLite; from PostgreSQL the types that Python represents exactly, and PostgreSQL's own
text for all others. `row_import` describes the way back.
"""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from tenantry.capsules.capsule import CapsuleTable
from tenantry.errors import TenantryError
from tenantry.migrations.version_table import (
    describe_error,
    read_versions_on,
    sqlite_file_exists,
    with_connect_timeout,
)

VERSION_TABLE = "alembic_version"

FETCHED_ROWS = 50
"""Rows that are fetched from the database at a time; a row can have megabytes."""

BUSY_TIMEOUT_S = 30
"""How long SQLite waits for another process's lock."""

_EXACT_TYPES = (
    sa.Integer, sa.Boolean, sa.String, sa.Uuid, sa.LargeBinary, sa.Numeric, sa.Float,
    sa.Date, sa.DateTime,
)  # fmt: skip
"""The types of PostgreSQL that psycopg reads without loss."""

_PARTITIONS = """
    SELECT relname FROM pg_class
    WHERE relispartition AND relnamespace = quote_ident(current_schema())::regnamespace
"""
"""Tables whose rows are those of the partitioned table above them."""

_SEQUENCE_POSITION = """
    SELECT CASE WHEN has_sequence_privilege(sequence, 'SELECT, USAGE')
                THEN pg_sequence_last_value(sequence) END
    FROM (SELECT pg_get_serial_sequence(quote_ident(%s), %s)::regclass AS sequence) AS found
"""
"""The last value of a column's sequence; NULL if there is no sequence or it was never used."""


class RowsError(TenantryError):
    """Rows cannot be read, or do not fit where they should go."""


class Snapshot:
    """A database as of the last call of `begin`; other processes may write meanwhile.

    Use it from one thread. The caller closes it.

    Raises:
        RowsError: the database is in memory, or its engine is not supported.
    """

    def __init__(self, url: sa.URL) -> None:
        self._url = url
        self._engine = open_engine(url)
        self._connection: sa.Connection | None = None

    def begin(self) -> None:
        """Begin the snapshot, or a new one. Does not create a SQLite file that does not exist."""
        self.close()
        if self._engine.dialect.name == "sqlite" and not sqlite_file_exists(self._url):
            return
        connection = self._connection = self._engine.connect()
        if self._engine.dialect.name == "postgresql":
            connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            connection.exec_driver_sql("SET LOCAL TIME ZONE 'UTC'")
            connection.exec_driver_sql("SELECT 1 FROM pg_class LIMIT 1")  # takes the snapshot
        else:
            connection.exec_driver_sql("BEGIN")
            # This takes the snapshot, too.
            connection.exec_driver_sql("SELECT count(*) FROM sqlite_master")

    def revisions(self) -> frozenset[str]:
        """Return the database's Alembic revisions."""
        # Reading a table that does not exist would end PostgreSQL's transaction.
        connection = self._connection
        if connection is None or VERSION_TABLE not in sa.inspect(connection).get_table_names():
            return frozenset()
        return read_versions_on(connection)

    def tables(self) -> list[CapsuleTable]:
        """Return the tables by name. From now on, no migration can change them on PostgreSQL."""
        connection = self._connection
        if connection is None:
            return []
        names = set(sa.inspect(connection).get_table_names()) - {VERSION_TABLE}
        if connection.dialect.name == "postgresql":
            names -= set(connection.exec_driver_sql(_PARTITIONS).scalars())
            for name in sorted(names):
                quoted = quote(connection, name)
                connection.exec_driver_sql(f"LOCK TABLE {quoted} IN ACCESS SHARE MODE")
        return [self._describe(connection, name) for name in sorted(names)]

    def _describe(self, connection: sa.Connection, name: str) -> CapsuleTable:
        columns = stored_columns(connection, name)
        if connection.dialect.name == "sqlite":
            position = autoincrement_position(connection, name)
            key = sa.inspect(connection).get_pk_constraint(name)["constrained_columns"]
            positions = dict.fromkeys(key, position)
        else:
            positions = {
                column: connection.exec_driver_sql(_SEQUENCE_POSITION, (name, column)).scalar()
                for column in columns
            }
        used = {column: last for column, last in positions.items() if last and last > 0}
        return CapsuleTable(name=name, columns=columns, positions=used)

    def rows(self, table: CapsuleTable) -> Iterator[list[Any]]:
        """Yield the rows of a table, with values in the order of its columns.

        Raises:
            RowsError: the driver cannot represent a value in Python.
        """
        connection = self._connection
        if connection is None:
            return
        types = {
            column["name"]: column["type"]
            for column in sa.inspect(connection).get_columns(table.name)
        }
        query = sa.select(*(self._read(name, types[name]) for name in table.columns))
        query = query.select_from(sa.table(table.name))
        try:
            with connection.execute(query, execution_options={"yield_per": FETCHED_ROWS}) as result:
                for row in result:
                    yield list(row)
        except DBAPIError as error:
            raise RowsError(
                f"table {table.name!r} cannot be read: {describe_error(error)}"
            ) from error

    def _read(self, name: str, column_type: sa.types.TypeEngine[Any]) -> sa.ColumnElement[Any]:
        column: sa.ColumnClause[Any] = sa.column(name)
        is_exact = self._engine.dialect.name == "sqlite" or isinstance(column_type, _EXACT_TYPES)
        return column if is_exact else sa.cast(column, sa.Text)

    def close(self) -> None:
        """End the snapshot. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def open_engine(url: sa.URL) -> sa.Engine:
    """Return an engine without a pool; on SQLite, the caller begins its transactions itself.

    Raises:
        RowsError: the database is in memory, or its engine is not supported.
    """
    if url.get_backend_name() == "sqlite":
        path = (url.database or "").removeprefix("file:")
        if path in ("", ":memory:") or url.query.get("mode") == "memory":
            raise RowsError(
                "a database in memory exists only in its process; use a file for tenants to back up"
            )
        # sqlite3 would begin transactions at the first write, which is too late for a snapshot.
        options: dict[str, Any] = {"isolation_level": None, "timeout": BUSY_TIMEOUT_S}
        return sa.create_engine(url, poolclass=sa.NullPool, connect_args=options)
    if url.drivername == "postgresql+psycopg":
        return sa.create_engine(with_connect_timeout(url), poolclass=sa.NullPool)
    raise RowsError(
        f"capsules support sqlite and postgresql+psycopg, not {url.drivername}; use its own tools"
    )


def quote(connection: sa.Connection, name: str) -> str:
    """Return a name in quotes, for a statement that goes to `exec_driver_sql`."""
    return connection.dialect.identifier_preparer.quote_identifier(name)


def stored_columns(connection: sa.Connection, table: str) -> list[str]:
    """Return the columns of a table that are not computed."""
    columns = sa.inspect(connection).get_columns(table)
    return [column["name"] for column in columns if "computed" not in column]


def autoincrement_position(connection: sa.Connection, table: str) -> int | None:
    """Return the last number of a SQLite table with AUTOINCREMENT; None for other tables."""
    query = "SELECT count(*) FROM sqlite_master WHERE name = ? AND sql LIKE '%AUTOINCREMENT%'"
    if not connection.exec_driver_sql(query, (table,)).scalar():
        return None
    query = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?"
    return int(connection.exec_driver_sql(query, (table,)).scalar_one())
