"""The rows of a tenant's database, for capsules: out in one snapshot, and in again.

Knows SQLite and PostgreSQL through psycopg. Values leave as the driver has them: SQLite's are
numbers, texts and bytes, PostgreSQL's what Python has an exact type for, and its own text for the
rest. PostgreSQL reads texts as what a column is, so rows of SQLite go in as they are; SQLite gets
them in the forms in which SQLAlchemy stores them there.
"""

import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, inspect
from sqlalchemy import types as sql

from core.errors import TenantryError
from core.revisions import is_there, look_at, with_timeout

VERSIONS = "alembic_version"

ROWS_AT_ONCE = 500
"""How many rows are fetched from the database at a time."""

BUSY_TIMEOUT_MS = 30_000

_EXACT = (
    sql.Integer, sql.Boolean, sql.String, sql.Uuid, sql.LargeBinary, sql.Numeric, sql.Date,
    sql.DateTime,
)  # fmt: skip
"""What psycopg reads without loss; all else is taken as PostgreSQL's own text."""


class RowsError(TenantryError):
    """Rows do not fit where they should go, or the engine is none that is known here."""


@dataclass(frozen=True)
class Table:
    """A table, and those of its columns that are written, not computed."""

    name: str
    columns: tuple[str, ...]


class Snapshot:
    """A database as it was when `begin` was last called; read while it serves.

    For one thread; whoever makes it closes it.

    Raises:
        RowsError: it cannot be read by another process, or the engine is not known here.
    """

    def __init__(self, url: URL) -> None:
        self._url = url
        self._engine = _engine(url, "BEGIN")
        self._connection: Connection | None = None

    def begin(self) -> None:
        """Begin the snapshot, or another one. A SQLite file that is not there is not made."""
        self.close()
        if self._engine.dialect.name == "sqlite" and not is_there(self._url):
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
        return look_at(self._connection)

    def tables(self) -> list[Table]:
        """Return its tables, sorted; on PostgreSQL no migration changes them from now on."""
        if self._connection is None:
            return []
        names = [name for name in inspect(self._connection).get_table_names() if name != VERSIONS]
        if names and self._connection.dialect.name == "postgresql":
            listed = ", ".join(map(self._quoted, sorted(names)))
            self._connection.exec_driver_sql(f"LOCK TABLE {listed} IN ACCESS SHARE MODE")
        return [Table(name, written(self._connection, name)) for name in sorted(names)]

    def rows(self, table: Table) -> Iterator[list[Any]]:
        """Yield its rows, values in the order of its columns; a few hundred are in memory."""
        if self._connection is None:
            return
        kinds = {one["name"]: one["type"] for one in inspect(self._connection).get_columns(table.name)}  # fmt: skip  # noqa: E501
        listed = ", ".join(self._read(name, kinds[name]) for name in table.columns)
        query = f"SELECT {listed} FROM {self._quoted(table.name)}"  # noqa: S608 - quoted names
        options = {"yield_per": ROWS_AT_ONCE}
        with self._connection.exec_driver_sql(query, execution_options=options) as result:
            for row in result:
                yield list(row)

    def _read(self, column: str, kind: sql.TypeEngine[Any]) -> str:
        quoted = self._quoted(column)
        is_own = self._engine.dialect.name == "postgresql" and not isinstance(kind, _EXACT)
        return f"CAST({quoted} AS text)" if is_own else quoted

    def _quoted(self, name: str) -> str:
        return _quoted(self._engine, name)

    def close(self) -> None:
        """End the snapshot. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def written(connection: Connection, table: str) -> tuple[str, ...]:
    """Return the columns of a table that are not computed."""
    columns = inspect(connection).get_columns(table)
    return tuple(one["name"] for one in columns if "computed" not in one)


class Filling:
    """The tables of a database that migrations have just made, in one transaction.

    Foreign keys are looked at when all rows are in, so the order of tables and rows is free.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._engine = connection.engine
        self._is_sqlite = connection.dialect.name == "sqlite"
        self._adapters: dict[str, list[Callable[[Any], Any]]] = {}

    def there(self) -> dict[str, frozenset[str]]:
        """Return the tables that are there, each with the columns that can be written."""
        names = inspect(self._connection).get_table_names()
        return {name: frozenset(written(self._connection, name)) for name in names}

    def clear(self, tables: Sequence[Table]) -> None:
        """Take out of tables what their migrations have put there."""
        quoted = [self._quoted(table.name) for table in tables]
        if quoted and not self._is_sqlite:
            self._connection.exec_driver_sql(f"TRUNCATE {', '.join(quoted)}")
        for name in quoted if self._is_sqlite else ():
            self._connection.exec_driver_sql(f"DELETE FROM {name}")  # noqa: S608 - quoted

    def insert(self, table: Table, rows: list[list[Any]]) -> None:
        """Put rows into a table.

        Raises:
            RowsError: a value has no place in its column.
        """
        columns = ", ".join(map(self._quoted, table.columns))
        name = self._quoted(table.name)
        if self._is_sqlite:
            marks = ", ".join("?" * len(table.columns))
            adapters = self._adapters_of(table)
            adapted = [
                tuple(adapt(value) for adapt, value in zip(adapters, row, strict=True))
                for row in rows
            ]
            text = f"INSERT INTO {name} ({columns}) VALUES ({marks})"  # noqa: S608 - quoted
            if adapted:
                self._connection.exec_driver_sql(text, adapted)
            return
        driver: Any = self._connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(f"COPY {name} ({columns}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)

    def finish(self, tables: Sequence[Table]) -> None:
        """Check foreign keys, and have sequences go on after the rows.

        Raises:
            RowsError: a row refers to one that is not there.
        """
        if self._is_sqlite:
            broken = self._connection.exec_driver_sql("PRAGMA foreign_key_check").all()
            if broken:
                text = f"{len(broken)} rows of {broken[0][0]!r} refer to rows that are not there"
                raise RowsError(text)
            return
        self._connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
        for table in tables:
            for column in table.columns:
                self._set_sequence(table.name, column)

    def _set_sequence(self, table: str, column: str) -> None:
        found = self._connection.exec_driver_sql(
            "SELECT pg_get_serial_sequence(%s, %s)", (self._quoted(table), column)
        ).scalar()
        if found is not None:
            name = self._quoted(column)
            last = f"SELECT max({name}) AS last FROM {self._quoted(table)}"  # noqa: S608 - quoted
            self._connection.exec_driver_sql(
                f"SELECT setval(%s, coalesce(last, 1), last IS NOT NULL) FROM ({last}) AS rows",  # noqa: S608
                (found,),
            )

    def _adapters_of(self, table: Table) -> list[Callable[[Any], Any]]:
        if table.name not in self._adapters:
            info = self._connection.exec_driver_sql(
                f"PRAGMA table_info({self._quoted(table.name)})"
            )
            declared = {row[1]: str(row[2]).upper() for row in info}
            self._adapters[table.name] = [
                _adapter(f"{table.name}.{name}", declared[name]) for name in table.columns
            ]
        return self._adapters[table.name]

    def _quoted(self, name: str) -> str:
        return _quoted(self._engine, name)


@contextmanager
def filling(url: URL) -> Iterator[Filling]:
    """Yield a database to fill; nothing of it stays if the block fails."""
    engine = _engine(url, "BEGIN IMMEDIATE")
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            yield Filling(connection)
            return
        connection.exec_driver_sql("SET LOCAL TIME ZONE 'UTC'")
        with _deferred_keys(connection):
            yield Filling(connection)


@contextmanager
def _deferred_keys(connection: Connection) -> Iterator[None]:
    """Have PostgreSQL look at foreign keys later; all in the transaction that is open."""
    keys = connection.exec_driver_sql(
        "SELECT quote_ident(relname), quote_ident(conname) FROM pg_constraint "
        "JOIN pg_class ON pg_class.oid = conrelid WHERE contype = 'f' AND NOT condeferrable "
        "AND conparentid = 0 AND connamespace = quote_ident(current_schema())::regnamespace"
    ).all()
    for table, key in keys:
        connection.exec_driver_sql(
            f"ALTER TABLE {table} ALTER CONSTRAINT {key} DEFERRABLE INITIALLY DEFERRED"
        )
    yield
    for table, key in keys:
        connection.exec_driver_sql(f"ALTER TABLE {table} ALTER CONSTRAINT {key} NOT DEFERRABLE")


def _adapter(place: str, declared: str) -> Callable[[Any], Any]:
    """Return what turns a value into what SQLAlchemy stores in such a column of SQLite."""

    def adapt(value: Any) -> Any:
        if isinstance(value, datetime):
            value = value if value.tzinfo is None else value.astimezone(UTC)
            return value.strftime(f"{value.year:04}-%m-%d %H:%M:%S.%f")
        if isinstance(value, date | time):
            return value.isoformat()
        if isinstance(value, uuid.UUID):
            return value.hex if declared == "CHAR(32)" else str(value)
        if isinstance(value, Decimal):
            return str(value) if "CHAR" in declared or declared == "TEXT" else _number(place, value)
        if isinstance(value, float) and math.isnan(value):
            raise RowsError(f"{place}: SQLite has no NaN; restore into PostgreSQL")
        return value

    return adapt


def _number(place: str, value: Decimal) -> int | float:
    """Return SQLite's form of an exact number.

    Raises:
        RowsError: it has none.
    """
    with suppress(ValueError, OverflowError):
        if value == value.to_integral_value() and abs(value) < 1 << 63:
            return int(value)
        number = float(value)
        if Decimal(repr(number)) == value:
            return number
    raise RowsError(f"{place}: SQLite has no exact form of {value}; restore into PostgreSQL")


def _engine(url: URL, begin: str) -> Engine:
    if url.get_backend_name() == "sqlite":
        name = (url.database or "").removeprefix("file:")
        if name in ("", ":memory:") or url.query.get("mode") == "memory":
            raise RowsError("a database in memory is there for its own process only")
        engine = create_engine(url, poolclass=NullPool)
        event.listen(engine, "connect", _leave_transactions_to_us)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
        return engine
    if url.drivername == "postgresql+psycopg":
        return create_engine(with_timeout(url), poolclass=NullPool)
    raise RowsError(
        f"capsules know SQLite and postgresql+psycopg, not {url.drivername}; use its own tools"
    )


def _leave_transactions_to_us(connection: Any, _: object) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")


def _quoted(engine: Engine, name: str) -> str:
    quoted = engine.dialect.identifier_preparer.quote_identifier(name)
    return quoted.replace("%%", "%")
