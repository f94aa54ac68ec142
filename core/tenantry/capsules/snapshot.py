"""The rows of a tenant's database go out: all as they were at one moment, while it serves."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import URL, Connection, inspect
from sqlalchemy import types as sql
from sqlalchemy.exc import DBAPIError

from tenantry.capsules.rows import RowsError, Table, engine_of, numbered, quoted, run, written
from tenantry.migrations.version_table import (
    describe_error,
    read_versions_on,
    sqlite_file_exists,
)

VERSIONS = "alembic_version"

ROWS_AT_ONCE = 50
"""How many rows are fetched from the database at a time: each may have megabytes."""

_EXACT = (
    sql.Integer, sql.Boolean, sql.String, sql.Uuid, sql.LargeBinary, sql.Numeric, sql.Float,
    sql.Date, sql.DateTime,
)  # fmt: skip
"""What psycopg reads without loss; all else is taken as PostgreSQL's own text."""


_PARTITIONS = """
    SELECT relname FROM pg_class
    WHERE relispartition AND relnamespace = quote_ident(current_schema())::regnamespace
"""
"""Their rows are those of the table that they are parts of."""

_POSITION = """
    SELECT CASE WHEN has_sequence_privilege(sequence, 'SELECT, USAGE')
                THEN pg_sequence_last_value(sequence) END
    FROM (SELECT pg_get_serial_sequence(%s, %s)::regclass AS sequence) AS found
"""
"""The last value of a column's sequence; none where there is no sequence, or nothing was taken."""


class Snapshot:
    """A database as it was when `begin` was last called; read while it serves.

    For one thread; whoever makes it closes it.

    Raises:
        RowsError: it cannot be read by another process, or the engine is not known here.
    """

    def __init__(self, url: URL) -> None:
        self._url = url
        self._engine = engine_of(url, "BEGIN")
        self._connection: Connection | None = None

    def begin(self) -> None:
        """Begin the snapshot, or another one. A SQLite file that is not there is not made."""
        self.close()
        if self._engine.dialect.name == "sqlite" and not sqlite_file_exists(self._url):
            return
        connection = self._connection = self._engine.connect()
        if self._engine.dialect.name == "postgresql":
            connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            connection.exec_driver_sql("SET LOCAL TIME ZONE 'UTC'")
            connection.exec_driver_sql("SELECT 1 FROM pg_class LIMIT 1")  # that is the moment
        else:
            connection.exec_driver_sql("SELECT count(*) FROM sqlite_master")

    def revisions(self) -> frozenset[str]:
        """Return what it is at."""
        if self._connection is None or VERSIONS not in inspect(self._connection).get_table_names():
            return frozenset()  # asking would end a transaction of PostgreSQL
        return read_versions_on(self._connection)

    def tables(self) -> list[Table]:
        """Return its tables, sorted; on PostgreSQL no migration changes them from now on."""
        if self._connection is None:
            return []
        names = set(inspect(self._connection).get_table_names()) - {VERSIONS}
        if self._connection.dialect.name == "postgresql":
            names -= set(run(self._connection, _PARTITIONS).scalars())
            for name in sorted(names):
                run(self._connection, f"LOCK TABLE {self._quoted(name)} IN ACCESS SHARE MODE")
        columns = {name: written(self._connection, name) for name in sorted(names)}
        return [Table(name, own, self._positions(name, own)) for name, own in columns.items()]

    def _positions(self, table: str, columns: tuple[str, ...]) -> dict[str, int]:
        """Return how far a table's numbers are by now: no row of the snapshot has a later one."""
        connection = self._connection
        if connection is None:
            return {}
        if connection.dialect.name == "sqlite":
            at = numbered(connection, table)
            key = inspect(connection).get_pk_constraint(table)["constrained_columns"]
            return dict.fromkeys(key, at) if at and at > 0 else {}
        found = {
            name: connection.exec_driver_sql(_POSITION, (self._quoted(table), name)).scalar()
            for name in columns
        }
        return {name: at for name, at in found.items() if at and at > 0}

    def rows(self, table: Table) -> Iterator[list[Any]]:
        """Yield its rows, values in the order of its columns.

        Raises:
            RowsError: the driver has no Python value for what is there.
        """
        if self._connection is None:
            return
        columns = inspect(self._connection).get_columns(table.name)
        kinds = {one["name"]: one["type"] for one in columns}
        listed = ", ".join(self._read(name, kinds[name]) for name in table.columns)
        query = f"SELECT {listed} FROM {self._quoted(table.name)}"  # noqa: S608 - quoted names
        try:
            with run(self._connection, query, yield_per=ROWS_AT_ONCE) as result:
                for row in result:
                    yield list(row)
        except DBAPIError as error:
            raise RowsError(
                f"table {table.name!r} cannot be read: {describe_error(error)}"
            ) from error

    def _read(self, column: str, kind: sql.TypeEngine[Any]) -> str:
        name = self._quoted(column)
        is_own = self._engine.dialect.name == "postgresql" and not isinstance(kind, _EXACT)
        return f"CAST({name} AS text)" if is_own else name

    def _quoted(self, name: str) -> str:
        return quoted(self._engine, name)

    def close(self) -> None:
        """End the snapshot. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
