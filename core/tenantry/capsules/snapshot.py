"""Reads all rows of a running tenant's database as of one moment.

The supported databases are SQLite, and PostgreSQL with psycopg. Values from SQLite are numbers,
text and bytes. Values from PostgreSQL are Python objects for the types in `_EXACT_TYPES`, and
PostgreSQL's text form for all other types. The module `row_import` writes the rows into a new
database.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from tenantry.capsules.capsule import VERSION_TABLE, CapsuleTable
from tenantry.capsules.definition import NoDefinitionError, TableDefinition, describe_table
from tenantry.database.options import NO_OPTIONS, command_options
from tenantry.errors import TenantryError
from tenantry.migrations.locks import lift_timeouts
from tenantry.migrations.version_table import (
    describe_error,
    read_versions_on,
    sqlite_file_exists,
    with_connect_timeout,
)

FETCHED_ROWS = 50
"""Number of rows that one fetch reads from the database.

Only a few rows are fetched at a time, because one row can have several MiB.
"""

BUSY_TIMEOUT_S = 30
"""Number of seconds that SQLite waits while another process holds a lock."""

_EXACT_TYPES = (
    sa.Integer, sa.Boolean, sa.String, sa.Uuid, sa.LargeBinary, sa.Numeric, sa.Float,
    sa.Date, sa.DateTime,
)  # fmt: skip
"""Column types whose values psycopg reads without loss."""

_PARTITIONS = """
    SELECT relname FROM pg_class
    WHERE relispartition AND relnamespace = quote_ident(current_schema())::regnamespace
"""
"""A query that returns all partitions.

The backup skips partitions, because a partitioned table includes the rows of its partitions.
"""

_FUNCTIONS = """
    SELECT proname FROM pg_proc
    WHERE pronamespace = quote_ident(current_schema())::regnamespace
      AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass
                      AND objid = pg_proc.oid AND deptype = 'e')
"""
"""A query that returns the functions in the current schema, except those of extensions."""

_SEQUENCE_POSITION = """
    SELECT CASE WHEN has_sequence_privilege(sequence, 'SELECT, USAGE')
                THEN pg_sequence_last_value(sequence) END
    FROM (SELECT pg_get_serial_sequence(quote_ident(%s), %s)::regclass AS sequence) AS found
"""
"""A query that returns the last value of a column's sequence.

The result is NULL if the column has no sequence, or if the sequence has never been used.
"""


class RowsError(TenantryError):
    """Rows cannot be read from a database, or cannot be written to another database."""


class Snapshot:
    """The content of a database at the time of the last call of `begin`.

    Other processes may write to the database while a snapshot is open. A snapshot is not
    thread-safe. The caller must close the snapshot.

    Raises:
        RowsError: the database is in memory, or the engine is not supported.
    """

    def __init__(self, url: sa.URL, options: Mapping[str, Any] = NO_OPTIONS) -> None:
        self._url = url
        self._engine = open_engine(url, options)
        self._connection: sa.Connection | None = None
        self.without_definition: dict[str, str] = {}
        """Maps each table or view that definitions cannot express to the reason."""

    def begin(self) -> None:
        """Begin a new snapshot. A SQLite file that does not exist is not created."""
        self.close()
        if self._engine.dialect.name == "sqlite" and not sqlite_file_exists(self._url):
            return
        connection = self._connection = self._engine.connect()
        if self._engine.dialect.name == "postgresql":
            connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            connection.exec_driver_sql("SET LOCAL TIME ZONE 'UTC'")
            lift_timeouts(connection)
            connection.exec_driver_sql(
                "SELECT 1 FROM pg_class LIMIT 1"
            )  # the first query starts the snapshot
        else:
            connection.exec_driver_sql("BEGIN")
            # In SQLite, a snapshot starts with the first read in a transaction.
            connection.exec_driver_sql("SELECT count(*) FROM sqlite_master")

    def revisions(self) -> frozenset[str]:
        """Return the Alembic revisions of the database."""
        # In PostgreSQL, a query of a missing table would abort the transaction.
        connection = self._connection
        if connection is None or VERSION_TABLE not in sa.inspect(connection).get_table_names():
            return frozenset()
        return read_versions_on(connection)

    def tables(self) -> list[CapsuleTable]:
        """Return the tables, sorted by name.

        In PostgreSQL, the tables are locked, so that no migration can change them while the
        snapshot is open.
        """
        connection = self._connection
        if connection is None:
            return []
        names = set(sa.inspect(connection).get_table_names()) - {VERSION_TABLE}
        if connection.dialect.name == "postgresql":
            names -= set(connection.exec_driver_sql(_PARTITIONS).scalars())
            for name in sorted(names):
                quoted = quote(connection, name)
                connection.exec_driver_sql(f"LOCK TABLE {quoted} IN ACCESS SHARE MODE")
        self.without_definition.clear()
        self._find_views(connection)
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
        definition: TableDefinition | None = None
        try:
            definition = describe_table(connection, name)
        except NoDefinitionError as error:
            self.without_definition[name] = str(error)
        return CapsuleTable(name=name, columns=columns, positions=used, definition=definition)

    def _find_views(self, connection: sa.Connection) -> None:
        """Add the views and functions of the database, which a capsule cannot contain."""
        inspector = sa.inspect(connection)
        found = dict.fromkeys(inspector.get_view_names(), "it is a view")
        if connection.dialect.name == "postgresql":
            views = inspector.get_materialized_view_names()
            found |= dict.fromkeys(views, "it is a materialized view")
            functions = connection.exec_driver_sql(_FUNCTIONS).scalars()
            found |= dict.fromkeys(functions, "it is a function")
        self.without_definition |= found

    def rows(self, table: CapsuleTable) -> Iterator[list[Any]]:
        """Yield the rows of a table. The values of each row are in the order of `table.columns`.

        Raises:
            RowsError: a value has no equivalent in Python.
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


def open_engine(url: sa.URL, options: Mapping[str, Any] = NO_OPTIONS) -> sa.Engine:
    """Return an engine without a connection pool.

    For SQLite, the caller must begin transactions with `BEGIN`.

    Raises:
        RowsError: the database is in memory, or the engine is not supported.
    """
    if url.get_backend_name() == "sqlite":
        path = (url.database or "").removeprefix("file:")
        if path in ("", ":memory:") or url.query.get("mode") == "memory":
            raise RowsError(
                "a database in memory exists only in its process; use a file for tenants to back up"
            )
        # By default, sqlite3 begins a transaction at the first write, which is too late for a
        # snapshot.
        arguments: dict[str, Any] = {"isolation_level": None, "timeout": BUSY_TIMEOUT_S}
        arguments |= command_options(url, options)
        return sa.create_engine(url, poolclass=sa.NullPool, connect_args=arguments)
    if url.drivername == "postgresql+psycopg":
        arguments = command_options(url, options)
        return sa.create_engine(
            with_connect_timeout(url), poolclass=sa.NullPool, connect_args=arguments
        )
    raise RowsError(
        f"capsules support sqlite and postgresql+psycopg, not {url.drivername}; use its own tools"
    )


def quote(connection: sa.Connection, name: str) -> str:
    """Return a name in quotes, for use in an SQL statement."""
    return connection.dialect.identifier_preparer.quote_identifier(name)


def stored_columns(connection: sa.Connection, table: str) -> list[str]:
    """Return the names of a table's columns, except computed columns."""
    columns = sa.inspect(connection).get_columns(table)
    return [column["name"] for column in columns if "computed" not in column]


def autoincrement_position(connection: sa.Connection, table: str) -> int | None:
    """Return the AUTOINCREMENT counter of a SQLite table, or None if the table has none."""
    query = "SELECT count(*) FROM sqlite_master WHERE name = ? AND sql LIKE '%AUTOINCREMENT%'"
    if not connection.exec_driver_sql(query, (table,)).scalar():
        return None
    query = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?"
    return int(connection.exec_driver_sql(query, (table,)).scalar_one())
