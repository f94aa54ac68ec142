"""Rows keep their values when they are copied between SQLite and PostgreSQL databases."""

import math
import uuid
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import NullPool, create_engine

from postgres import Postgres
from tenantry.capsules.json_values import dump_value, load_value
from tenantry.capsules.row_import import importing_rows
from tenantry.capsules.snapshot import RowsError, Snapshot

pytestmark = pytest.mark.live

SQLITE, POSTGRES = "sqlite", "postgresql"
NAIVE = datetime(2026, 1, 2, 3, 4, 5, 6)  # noqa: DTZ001 - a column without a time zone returns such values

KINDS = {
    "big": (sa.BigInteger, [(1 << 63) - 1, -(1 << 63), 0, None]),
    "text": (sa.Text, ["", "a\n\t\\N\r'\"", "ä\U0001f600\x7f", "%s %% {}", None]),
    "data": (sa.LargeBinary, [b"", b"\0\xff\\x00", bytes(range(256)), None]),
    "flag": (sa.Boolean, [True, False, None]),
    "real": (sa.Double, [0.1, -0.0, 1e300, 5e-324, math.inf, None]),
    "exact": (sa.Numeric(38, 4), [Decimal("12345.6789"), Decimal("-0.5000"), Decimal(10**14)]),
    "moment": (sa.DateTime, [NAIVE, NAIVE.replace(microsecond=0), NAIVE.replace(year=1), None]),
    "zoned": (sa.DateTime(timezone=True), [NAIVE.replace(tzinfo=UTC), None]),
    "day": (sa.Date, [date.min, date.max, None]),
    "hour": (sa.Time, [time(3, 4, 5, 6), time(0), None]),
    "key": (sa.Uuid, [uuid.UUID(int=1), None]),
    "extra": (sa.JSON, [{"a": [1.5, None, "ä"]}, [], None]),
    "a%b": (sa.String(9), ["x%y", None]),
}

Databases = Callable[[str], sa.Engine]


@pytest.fixture(name="database")
def _database(postgres_server: Postgres, tmp_path: Path) -> Databases:
    """Return a function that creates an empty database of an engine."""

    def make(engine: str) -> sa.Engine:
        path = tmp_path / f"{uuid.uuid4()}.sqlite3"
        url = postgres_server.new_database() if engine == POSTGRES else f"sqlite:///{path}"
        return create_engine(url, poolclass=NullPool)

    return make


def table_of(**kinds: Any) -> sa.Table:
    """Return a table with a primary key, and a column of each given type."""
    columns = [sa.Column(name, kind) for name, kind in kinds.items()]
    return sa.Table("a%b", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), *columns)


def transfer(source: sa.Engine, target: sa.Engine) -> None:
    """Copy all rows from one database to another, as backup and restore do."""
    snapshot = Snapshot(source.url)
    with closing(snapshot), importing_rows(target.url, source.dialect.name) as rows:
        snapshot.begin()
        tables = snapshot.tables()
        rows.clear(tables)
        for table in tables:
            lines = [dump_value(row).encode() for row in snapshot.rows(table)]
            if lines:
                rows.insert(table, [load_value(line) for line in lines])
        rows.finish(tables)


@pytest.mark.parametrize("to_engine", [SQLITE, POSTGRES])
@pytest.mark.parametrize("from_engine", [SQLITE, POSTGRES])
def test_every_value_arrives(database: Databases, from_engine: str, to_engine: str) -> None:
    """After rows are copied, an app reads the same values, and a new row gets a new key."""
    source, target = database(from_engine), database(to_engine)
    table = table_of(**{name: kind for name, (kind, _) in KINDS.items()})
    length = max(len(values) for _, values in KINDS.values())
    written = [
        {name: values[n] if n < len(values) else None for name, (_, values) in KINDS.items()}
        for n in range(length)
    ]
    for engine in (source, target):
        table.create(engine)
    with source.begin() as connection:
        connection.execute(table.insert(), written)

    transfer(source, target)

    with target.begin() as connection:
        columns = list(table.c)[1:]
        read = connection.execute(sa.select(*columns).order_by(table.c.id)).mappings().all()
        new = connection.execute(table.insert().values(flag=True)).inserted_primary_key
    if to_engine == SQLITE:  # SQLite has no time zones
        written[0]["zoned"] = NAIVE
    assert written == [dict(row) for row in read]
    assert (length + 1,) == tuple(new or ())


@pytest.mark.parametrize("is_empty", [False, True])
@pytest.mark.parametrize("engine", [POSTGRES, SQLITE])
def test_a_key_is_not_used_twice(database: Databases, engine: str, *, is_empty: bool) -> None:
    """In a restored database, a new row does not get the key of a row that was deleted earlier."""
    source, target = database(engine), database(engine)
    column = sa.Column("id", sa.Integer, primary_key=True)
    table = sa.Table("a%b", sa.MetaData(), column, sa.Column("flag", sa.Boolean),
                     sqlite_autoincrement=True)  # fmt: skip
    for each in (source, target):
        table.create(each)
    with source.begin() as connection:
        connection.execute(table.insert(), [{"flag": True}] * 5)
        connection.execute(table.delete().where(column > (0 if is_empty else 3)))

    transfer(source, target)

    with target.begin() as connection:
        new = connection.execute(table.insert().values(flag=True)).inserted_primary_key
    assert (6,) == tuple(new or ())


@pytest.mark.parametrize(
    ("way", "kind", "value", "reason"),
    [
        ((SQLITE, POSTGRES), sa.Text, "a\0b", "a%b.value: PostgreSQL has no text with a NUL"),
        ((SQLITE, POSTGRES), sa.Integer, "x", "table 'a%b': .*syntax for type integer"),
        ((SQLITE, POSTGRES), sa.Integer, 1 << 40, "table 'a%b': .*out of range for type integer"),
        ((SQLITE, POSTGRES), sa.Boolean, 2, "table 'a%b': .*syntax for type boolean"),
        ((POSTGRES, SQLITE), sa.Double, "NaN", "a%b.value: SQLite has no NaN"),
        ((POSTGRES, SQLITE), sa.Numeric, "NaN", "a%b.value: SQLite has no exact form of NaN"),
        ((POSTGRES, SQLITE), sa.Numeric, "0.12345678901234567890", "no exact form of 0.1234567890"),
        ((POSTGRES, SQLITE), sa.Interval, "1 day", "a%b.value: SQLite has no interval"),
        ((POSTGRES, SQLITE), sa.Date, "infinity", "table 'a%b' cannot be read: .*date too large"),
        ((SQLITE, SQLITE), sa.Text, b"\xff", "table 'a%b' cannot be read: .*decode to UTF-8"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_named(
    database: Databases, way: tuple[str, str], kind: Any, value: object, reason: str
) -> None:
    """The error about a value that the new database cannot store names the table."""
    source, target = map(database, way)
    table = table_of(value=kind)
    for engine in (source, target):
        table.create(engine)
    with source.begin() as connection:
        if way[0] == SQLITE:
            form = "CAST(? AS TEXT)" if isinstance(value, bytes) else "?"
            connection.exec_driver_sql(f'INSERT INTO "a%b" VALUES (1, {form})', (value,))
        else:
            connection.exec_driver_sql('INSERT INTO "a%%b" VALUES (1, %s)', (value,))

    with pytest.raises(RowsError, match=reason):
        transfer(source, target)

    with target.connect() as connection:
        assert [] == connection.execute(table.select()).all()


def test_postgres_values_survive_in_postgres(database: Databases) -> None:
    """Values of PostgreSQL-only types are copied exactly to another PostgreSQL database."""
    kinds = {"i": "interval", "n": "numeric", "d": "double precision", "b": "bit(3)", "a": "int[]"}
    values = ("1 mon -2 days 03:04:05.000006", "NaN", "NaN", "101", "{1,NULL,3}")
    source, target = database(POSTGRES), database(POSTGRES)
    columns = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
    found = []
    for engine in (source, target):
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE TABLE t ({columns})")
    with source.begin() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (%s, %s, %s, %s, %s)", values)

    transfer(source, target)

    for engine in (source, target):
        with engine.connect() as connection:
            found.append(connection.exec_driver_sql("SELECT t::text FROM t").scalar())
    assert found[0] == found[1]


def test_sqlite_values_keep_their_types(database: Databases) -> None:
    """Copying a SQLite table keeps a value that does not have the type of its column."""
    source, target = database(SQLITE), database(SQLITE)
    rows = [(1, "no number", b"x"), (2, 1.5, "now"), (3, "2026", 7), (4, "a\0b", None)]
    for engine in (source, target):
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE t (id INTEGER PRIMARY KEY, a INT, b DATETIME)")
    with source.begin() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (?, ?, ?)", rows)

    transfer(source, target)

    with source.connect() as before, target.connect() as after:
        query = "SELECT *, typeof(a), typeof(b) FROM t"
        assert before.exec_driver_sql(query).all() == after.exec_driver_sql(query).all()


INSERT = "INSERT INTO log VALUES (new.id, '?%s');"
TRIGGER = "CREATE TRIGGER noted AFTER INSERT ON goods"
FUNCTION = "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS"
TRIGGERS = {
    SQLITE: [f"{TRIGGER} BEGIN {INSERT} END"],
    POSTGRES: [
        f"{FUNCTION} $$ BEGIN {INSERT.replace('%', '%%')} RETURN NULL; END $$",
        f"{TRIGGER} FOR EACH ROW EXECUTE FUNCTION noted()",
    ],
}


@pytest.mark.parametrize("engine", [SQLITE, POSTGRES])
def test_triggers_do_not_run_during_an_import(database: Databases, engine: str) -> None:
    """Triggers do not run while rows are imported, but run again for rows that are added later."""
    source, target = database(engine), database(engine)
    for each in (source, target):
        with each.begin() as connection:
            for statement in (
                "CREATE TABLE goods (id int)",
                "CREATE TABLE log (id int, what text)",
                *TRIGGERS[engine],
            ):
                connection.exec_driver_sql(statement)
    with source.begin() as connection:
        connection.exec_driver_sql("INSERT INTO goods VALUES (1), (2), (3)")
        connection.exec_driver_sql("DELETE FROM log WHERE id = 2")

    transfer(source, target)

    with target.begin() as connection:
        connection.exec_driver_sql("INSERT INTO goods VALUES (4)")
        found = connection.exec_driver_sql("SELECT * FROM log ORDER BY id").all()
    assert [(1, "?%s"), (3, "?%s"), (4, "?%s")] == [tuple(row) for row in found]


def test_rows_of_partitions_are_read_once(database: Databases) -> None:
    """Rows of a partitioned PostgreSQL table are copied once, and return to their partition."""
    source, target = database(POSTGRES), database(POSTGRES)
    for each in (source, target):
        with each.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE t (id int) PARTITION BY RANGE (id)")
            for n in range(2):
                bounds = f"FROM ({n * 10}) TO ({n * 10 + 10})"
                connection.exec_driver_sql(f"CREATE TABLE t{n} PARTITION OF t FOR VALUES {bounds}")
    with source.begin() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1), (2), (11)")

    transfer(source, target)

    with target.connect() as connection:
        found = [
            connection.exec_driver_sql(f"SELECT id FROM {name}").all() for name in ("t0", "t1")
        ]
    assert [[(1,), (2,)], [(11,)]] == [[tuple(row) for row in rows] for rows in found]


def test_a_broken_foreign_key_is_named(database: Databases) -> None:
    """If imported rows break a foreign key, the error counts these rows and names a table."""
    source, target = database(SQLITE), database(SQLITE)
    for each in (source, target):
        with each.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE t (id INTEGER PRIMARY KEY, up REFERENCES t)")
    with source.begin() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1, 9), (2, 8), (3, 1)")

    with pytest.raises(
        RowsError, match=r"^2 rows refer to rows that do not exist, for example .*'t'$"
    ):
        transfer(source, target)
