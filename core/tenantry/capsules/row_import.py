"""Writes the rows of a capsule into newly migrated tables.

Values from SQLite need no conversion for PostgreSQL, because PostgreSQL parses text according to
the type of the column. Values from PostgreSQL are converted to the form that SQLAlchemy uses in
SQLite.
"""

import math
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from tenantry.capsules.capsule import CapsuleTable
from tenantry.capsules.snapshot import (
    RowsError,
    autoincrement_position,
    open_engine,
    quote,
    stored_columns,
)
from tenantry.database.options import NO_OPTIONS
from tenantry.migrations.version_table import describe_error

MESSAGE_LIMIT = 500
"""Maximum number of characters that an error message shows of a value or of a driver's message."""

_NOT_DEFERRABLE_KEYS = """
    SELECT relname, conname
    FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid
    WHERE contype = 'f' AND NOT condeferrable AND conparentid = 0
      AND connamespace = quote_ident(current_schema())::regnamespace
"""

_TRIGGERS = """
    SELECT relname, tgname, tgenabled = 'A'
    FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
    WHERE NOT tgisinternal AND tgenabled IN ('O', 'A')
      AND relnamespace = quote_ident(current_schema())::regnamespace
"""


@contextmanager
def importing_rows(
    url: sa.URL, source_engine: str, options: Mapping[str, Any] = NO_OPTIONS
) -> Iterator["RowImport"]:
    """Yield an import in one transaction, which is rolled back if the `with` block fails.

    Triggers are disabled during the import, because the capsule already contains the rows that
    triggers wrote.

    Args:
        url: the URL of the database that receives the rows.
        source_engine: the engine of the original database, `sqlite` or `postgresql`.
        options: the tenant's `DATABASE_OPTIONS`.
    """
    with open_engine(url, options).begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            with _sqlite_triggers_dropped(connection):
                yield SqliteImport(connection, source_engine)
        else:
            connection.exec_driver_sql("SET LOCAL TIME ZONE 'UTC'")
            with _foreign_keys_deferred(connection), _triggers_disabled(connection):
                yield PostgresImport(connection)


class RowImport(ABC):
    """Imports rows into one database, in one transaction.

    Foreign keys are checked at the end, by `finish`, so callers can insert rows in any order.
    """

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def existing_columns(self) -> dict[str, frozenset[str]]:
        """Return the stored columns of each existing table."""
        names = sa.inspect(self._connection).get_table_names()
        return {name: frozenset(stored_columns(self._connection, name)) for name in names}

    def insert(self, table: CapsuleTable, rows: list[list[Any]]) -> None:
        """Insert rows into a table.

        Raises:
            RowsError: a value does not fit the type of the column.
        """
        try:
            self._insert(table, rows)
        except RowsError:
            raise
        except Exception as error:  # drivers raise many classes of exceptions
            raise RowsError(f"table {table.name!r}: {_shorten(describe_error(error))}") from error

    @abstractmethod
    def clear(self, tables: Sequence[CapsuleTable]) -> None:
        """Delete the rows that migrations inserted into the tables."""

    @abstractmethod
    def finish(self, tables: Sequence[CapsuleTable]) -> None:
        """Check foreign keys, and set each sequence to its position at the time of the backup.

        Raises:
            RowsError: a foreign key refers to a row that does not exist.
        """

    @abstractmethod
    def _insert(self, table: CapsuleTable, rows: list[list[Any]]) -> None: ...


class SqliteImport(RowImport):
    """Imports rows into a SQLite database."""

    def __init__(self, connection: sa.Connection, source_engine: str) -> None:
        super().__init__(connection)
        self._is_from_sqlite = source_engine == "sqlite"
        self._columns: dict[str, list[_SqliteColumn]] = {}

    def clear(self, tables: Sequence[CapsuleTable]) -> None:
        """Delete all rows of the given tables."""
        for table in tables:
            self._connection.execute(sa.delete(sa.table(table.name)))

    def _insert(self, table: CapsuleTable, rows: list[list[Any]]) -> None:
        columns = self._columns_of(table)
        adapted = [
            {column.name: column.adapt(value) for column, value in zip(columns, row, strict=True)}
            for row in rows
        ]
        self._connection.execute(sa.insert(_core_table(table)), adapted)

    def _columns_of(self, table: CapsuleTable) -> list["_SqliteColumn"]:
        if table.name not in self._columns:
            query = "SELECT name, upper(type) FROM pragma_table_info(?)"
            rows = self._connection.exec_driver_sql(query, (table.name,))
            types = {row[0]: row[1] for row in rows}
            self._columns[table.name] = [
                _SqliteColumn(
                    table=table.name,
                    name=name,
                    declared_type=types[name],
                    is_from_sqlite=self._is_from_sqlite,
                )
                for name in table.columns
            ]
        return self._columns[table.name]

    def finish(self, tables: Sequence[CapsuleTable]) -> None:
        """Check foreign keys, and set the AUTOINCREMENT counters of the tables."""
        query = 'SELECT count(*), min("table") FROM pragma_foreign_key_check'
        count, name = self._connection.exec_driver_sql(query).one()
        if count:
            text = f"{count:,} rows refer to rows that do not exist, for example in {name!r}"
            raise RowsError(text)
        for table in tables:
            self._advance_autoincrement(table)

    def _advance_autoincrement(self, table: CapsuleTable) -> None:
        last = max(table.positions.values(), default=0)
        present = autoincrement_position(self._connection, table.name)
        if present is not None and last > present:
            run = self._connection.exec_driver_sql
            run("DELETE FROM sqlite_sequence WHERE name = ?", (table.name,))
            run("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table.name, last))


class PostgresImport(RowImport):
    """Imports rows into a PostgreSQL database with COPY."""

    def clear(self, tables: Sequence[CapsuleTable]) -> None:
        """Truncate all tables in one statement, because foreign keys may connect them."""
        if tables:
            names = ", ".join(quote(self._connection, table.name) for table in tables)
            self._connection.exec_driver_sql(f"TRUNCATE {names}")

    def _insert(self, table: CapsuleTable, rows: list[list[Any]]) -> None:
        from psycopg import sql  # noqa: PLC0415 - psycopg is an optional dependency

        driver: Any = self._connection.connection.driver_connection
        columns = sql.SQL(", ").join(map(sql.Identifier, table.columns))
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), columns)
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                try:
                    copy.write_row(row)
                except Exception:
                    _check_no_nul(table, row)
                    raise

    def finish(self, tables: Sequence[CapsuleTable]) -> None:
        """Check foreign keys, and set the sequences of the tables."""
        self._connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
        for table in tables:
            for column in table.columns:
                self._advance_sequence(table, column)

    def _advance_sequence(self, table: CapsuleTable, column: str) -> None:
        query = "SELECT pg_get_serial_sequence(quote_ident(%s), %s)"
        sequence = self._connection.exec_driver_sql(query, (table.name, column)).scalar()
        if sequence is None:
            return
        core_table = _core_table(table)
        highest = self._connection.scalar(sa.select(sa.func.max(core_table.c[column])))
        last = max(highest or 0, table.positions.get(column, 0))
        arguments = (sequence, max(last, 1), last > 0)
        self._connection.exec_driver_sql("SELECT setval(%s::regclass, %s, %s)", arguments)


def _core_table(table: CapsuleTable) -> sa.TableClause:
    return sa.table(table.name, *(sa.column(name) for name in table.columns))


@contextmanager
def _sqlite_triggers_dropped(connection: sa.Connection) -> Iterator[None]:
    """Drop all triggers, and create them again at the end of the `with` block.

    The triggers are dropped because SQLite cannot disable triggers.
    """
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
    triggers = connection.exec_driver_sql(query).all()
    for name, _ in triggers:
        connection.exec_driver_sql(f"DROP TRIGGER {quote(connection, name)}")
    yield
    for _, statement in triggers:
        connection.exec_driver_sql(statement)


@contextmanager
def _triggers_disabled(connection: sa.Connection) -> Iterator[None]:
    """Disable PostgreSQL's triggers during the `with` block."""

    def alter(table: str, action: str, trigger: str) -> None:
        names = quote(connection, table), quote(connection, trigger)
        connection.exec_driver_sql(f"ALTER TABLE {names[0]} {action} TRIGGER {names[1]}")

    triggers = connection.exec_driver_sql(_TRIGGERS).all()
    for table, trigger, _ in triggers:
        alter(table, "DISABLE", trigger)
    yield
    for table, trigger, is_always in triggers:
        alter(table, "ENABLE ALWAYS" if is_always else "ENABLE", trigger)


@contextmanager
def _foreign_keys_deferred(connection: sa.Connection) -> Iterator[None]:
    """Make PostgreSQL defer the check of foreign keys to the end of the transaction."""

    def alter(table: str, key: str, mode: str) -> None:
        names = quote(connection, table), quote(connection, key)
        connection.exec_driver_sql(f"ALTER TABLE {names[0]} ALTER CONSTRAINT {names[1]} {mode}")

    keys = connection.exec_driver_sql(_NOT_DEFERRABLE_KEYS).all()
    for table, key in keys:
        alter(table, key, "DEFERRABLE INITIALLY DEFERRED")
    yield
    for table, key in keys:
        alter(table, key, "NOT DEFERRABLE")


@dataclass(frozen=True)
class _SqliteColumn:
    """A column of a SQLite table, with the conversion of its values."""

    table: str
    name: str
    declared_type: str
    is_from_sqlite: bool
    """Whether the values come from a SQLite database."""

    def adapt(self, value: Any) -> Any:
        """Convert a value to the form that SQLAlchemy stores in SQLite.

        Raises:
            RowsError: SQLite cannot store the value.
        """
        if isinstance(value, datetime):
            utc = value if value.tzinfo is None else value.astimezone(UTC)
            return utc.replace(tzinfo=None).isoformat(" ", "microseconds")
        if isinstance(value, date | time):
            return value.isoformat()
        if isinstance(value, uuid.UUID):
            return value.hex if self.declared_type == "CHAR(32)" else str(value)
        if isinstance(value, Decimal):
            is_text = "CHAR" in self.declared_type or self.declared_type == "TEXT"
            return str(value) if is_text else self._number(value)
        if isinstance(value, float) and math.isnan(value):
            raise self._error("NaN")
        is_text = isinstance(value, str) and not self.is_from_sqlite
        if is_text and self.declared_type == "DATETIME":  # SQLAlchemy stores intervals as DATETIME
            raise self._error(f"interval such as {_shorten(value)!r}")
        return value

    def _number(self, value: Decimal) -> int | float:
        with suppress(ValueError, OverflowError):
            if value == value.to_integral_value() and abs(value) < 1 << 63:
                return int(value)
            number = float(value)
            if Decimal(repr(number)) == value:
                return number
        raise self._error(f"exact form of {_shorten(str(value))}")

    def _error(self, what: str) -> RowsError:
        return RowsError(f"{self.table}.{self.name}: SQLite has no {what}; restore into PostgreSQL")


def _check_no_nul(table: CapsuleTable, row: list[Any]) -> None:
    for name, value in zip(table.columns, row, strict=True):
        if isinstance(value, str) and "\0" in value:
            place = f"{table.name}.{name}"
            raise RowsError(f"{place}: PostgreSQL has no text with a NUL; restore into SQLite")


def _shorten(text: str) -> str:
    return text if len(text) <= MESSAGE_LIMIT else f"{text[:MESSAGE_LIMIT]}…"
