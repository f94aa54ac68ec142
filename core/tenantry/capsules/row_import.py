"""The rows of a tenant's database go in: into the tables that its migrations have just made."""

import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

from sqlalchemy import URL, Connection, inspect

from tenantry.capsules.rows import RowsError, Table, engine_of, numbered, quoted, run, written
from tenantry.migrations.version_table import describe_error

SHOWN = 500
"""Characters of what a driver says: a value may be among them."""

_TRIGGERS = """
    SELECT quote_ident(relname), quote_ident(tgname), tgenabled = 'A'
    FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
    WHERE NOT tgisinternal AND tgenabled IN ('O', 'A')
      AND relnamespace = quote_ident(current_schema())::regnamespace
"""


class RowImport:
    """The tables of a database that migrations have just made, in one transaction.

    Foreign keys are looked at when all rows are in, so the order of tables and rows is free.

    Args:
        connection: in a transaction.
        source: the engine that the rows were in.
    """

    def __init__(self, connection: Connection, source: str) -> None:
        self._connection = connection
        self._source = source
        self._engine = connection.engine
        self._is_sqlite = connection.dialect.name == "sqlite"
        self._adapters: dict[str, list[Callable[[Any], Any]]] = {}

    def there(self) -> dict[str, frozenset[str]]:
        """Return the tables that are there, each with the columns that can be written."""
        names = inspect(self._connection).get_table_names()
        return {name: frozenset(written(self._connection, name)) for name in names}

    def clear(self, tables: Sequence[Table]) -> None:
        """Take out of tables what their migrations have put there."""
        names = [self._quoted(table.name) for table in tables]
        if names and not self._is_sqlite:
            run(self._connection, f"TRUNCATE {', '.join(names)}")
        for name in names if self._is_sqlite else ():
            run(self._connection, f"DELETE FROM {name}")  # noqa: S608 - quoted

    def insert(self, table: Table, rows: list[list[Any]]) -> None:
        """Put rows into a table.

        Raises:
            RowsError: a value has no place in its column.
        """
        try:
            if self._is_sqlite:
                self._insert(table, rows)
            else:
                self._copy(table, rows)
        except RowsError:
            raise
        except Exception as error:  # whatever a driver raises
            raise RowsError(f"table {table.name!r}: {_short(describe_error(error))}") from error

    def _insert(self, table: Table, rows: list[list[Any]]) -> None:
        adapters = self._adapters_of(table)
        adapted = [
            tuple(adapt(value) for adapt, value in zip(adapters, row, strict=True)) for row in rows
        ]
        marks = ", ".join("?" * len(table.columns))
        text = f"INSERT INTO {self._named(table)} VALUES ({marks})"  # noqa: S608 - quoted
        self._connection.exec_driver_sql(text, adapted)

    def _copy(self, table: Table, rows: list[list[Any]]) -> None:
        driver: Any = self._connection.connection.driver_connection
        statement = f"COPY {self._named(table)} FROM STDIN"
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                try:
                    copy.write_row(row)
                except Exception:
                    _check_texts(table, row)
                    raise

    def _named(self, table: Table) -> str:
        return f"{self._quoted(table.name)} ({', '.join(map(self._quoted, table.columns))})"

    def finish(self, tables: Sequence[Table]) -> None:
        """Check foreign keys, and have sequences go on after the rows.

        Raises:
            RowsError: a row refers to one that is not there.
        """
        if self._is_sqlite:
            query = 'SELECT count(*), min("table") FROM pragma_foreign_key_check'
            count, name = run(self._connection, query).one()
            if count:
                text = f"{count:,} rows refer to rows that are not there, such as some of {name!r}"
                raise RowsError(text)
            for table in tables:
                self._set_number(table)
            return
        self._connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
        for table in tables:
            for column in table.columns:
                self._set_sequence(table.name, column, table.positions.get(column))

    def _set_number(self, table: Table) -> None:
        """Do the same in SQLite, where the table has AUTOINCREMENT."""
        at, now = max(table.positions.values(), default=0), numbered(self._connection, table.name)
        if now is not None and at > now:
            ask = self._connection.exec_driver_sql
            ask("DELETE FROM sqlite_sequence WHERE name = ?", (table.name,))
            ask("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table.name, at))

    def _set_sequence(self, table: str, column: str, position: int | None) -> None:
        found = self._connection.exec_driver_sql(
            "SELECT pg_get_serial_sequence(%s, %s)", (self._quoted(table), column)
        ).scalar()
        if found is not None:
            name, own = (self._quoted(one).replace("%", "%%") for one in (column, table))
            last = f"greatest((SELECT max({name}) FROM {own}), %s::bigint) AS last"  # noqa: S608
            self._connection.exec_driver_sql(
                f"SELECT setval(%s, coalesce(last, 1), last IS NOT NULL) FROM (SELECT {last}) AS a",  # noqa: S608
                (found, position),
            )

    def _adapters_of(self, table: Table) -> list[Callable[[Any], Any]]:
        if table.name not in self._adapters:
            info = run(self._connection, f"PRAGMA table_info({self._quoted(table.name)})")
            declared = {row[1]: str(row[2]).upper() for row in info}
            self._adapters[table.name] = [
                _adapter(f"{table.name}.{name}", declared[name], is_other=self._source != "sqlite")
                for name in table.columns
            ]
        return self._adapters[table.name]

    def _quoted(self, name: str) -> str:
        return quoted(self._engine, name)


@contextmanager
def importing_rows(url: URL, source: str) -> Iterator[RowImport]:
    """Yield a database to fill; nothing of it stays if the block fails.

    Args:
        url: the database.
        source: the engine that the rows were in.
    """
    engine = engine_of(url, "BEGIN IMMEDIATE")
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            with _no_triggers_in_sqlite(connection):
                yield RowImport(connection, source)
            return
        connection.exec_driver_sql("SET LOCAL TIME ZONE 'UTC'")
        with _deferred_keys(connection), _no_triggers(connection):
            yield RowImport(connection, source)


@contextmanager
def _no_triggers_in_sqlite(connection: Connection) -> Iterator[None]:
    """Have no trigger do again what its rows say already; SQLite can only drop and make them."""
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
    triggers = run(connection, query).all()
    for name, _ in triggers:
        run(connection, f"DROP TRIGGER {quoted(connection.engine, name)}")
    yield
    for _, statement in triggers:
        run(connection, statement)


@contextmanager
def _no_triggers(connection: Connection) -> Iterator[None]:
    """Do the same in PostgreSQL."""
    triggers = run(connection, _TRIGGERS).all()
    for table, name, _ in triggers:
        run(connection, f"ALTER TABLE {table} DISABLE TRIGGER {name}")
    yield
    for table, name, is_always in triggers:
        how = "ENABLE ALWAYS" if is_always else "ENABLE"
        run(connection, f"ALTER TABLE {table} {how} TRIGGER {name}")


@contextmanager
def _deferred_keys(connection: Connection) -> Iterator[None]:
    """Have PostgreSQL look at foreign keys later; all in the transaction that is open."""
    keys = connection.exec_driver_sql(
        "SELECT quote_ident(relname), quote_ident(conname) FROM pg_constraint "
        "JOIN pg_class ON pg_class.oid = conrelid WHERE contype = 'f' AND NOT condeferrable "
        "AND conparentid = 0 AND connamespace = quote_ident(current_schema())::regnamespace"
    ).all()
    for table, key in keys:
        run(connection, f"ALTER TABLE {table} ALTER CONSTRAINT {key} DEFERRABLE INITIALLY DEFERRED")
    yield
    for table, key in keys:
        run(connection, f"ALTER TABLE {table} ALTER CONSTRAINT {key} NOT DEFERRABLE")


def _adapter(place: str, declared: str, *, is_other: bool) -> Callable[[Any], Any]:
    """Return what turns a value into what SQLAlchemy stores in such a column of SQLite.

    Args:
        place: table and column.
        declared: the column's type, as SQLite was told.
        is_other: whether the value comes from another engine.
    """

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
            raise _unfit(place, "SQLite", "NaN")
        if is_other and declared == "DATETIME" and isinstance(value, str):
            raise _unfit(place, "SQLite", f"interval, as {_short(value)!r} is")
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
    raise _unfit(place, "SQLite", f"exact form of {_short(str(value))}")


def _check_texts(table: Table, row: list[Any]) -> None:
    """Check that PostgreSQL can hold the texts of a row.

    Raises:
        RowsError: it cannot.
    """
    for name, value in zip(table.columns, row, strict=True):
        if isinstance(value, str) and "\0" in value:
            raise _unfit(f"{table.name}.{name}", "PostgreSQL", "text with a NUL", "SQLite")


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _unfit(place: str, engine: str, what: str, other: str = "PostgreSQL") -> RowsError:
    return RowsError(f"{place}: {engine} has no {what}; restore into {other}")
