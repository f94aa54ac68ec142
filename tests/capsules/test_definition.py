"""A backup file contains the definitions of tables that no migration creates."""

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from capsule_files import members_of
from capsule_tenants import RunCommand, backup, tenantry_fixture, url_of
from postgres import Postgres
from tenantry.capsules.archive import CapsuleError
from tenantry.settings import HostSettings

__all__ = ["tenantry_fixture"]

NOT_HELD = {
    "check": ("CREATE TABLE odd (a INTEGER CHECK (a > 1))", "contains CHECK"),
    "collation": ("CREATE TABLE odd (a TEXT COLLATE NOCASE)", "contains COLLATE"),
    "computed": ("CREATE TABLE odd (a INTEGER, b INTEGER AS (a + 1))", "'b' is computed"),
    "default": ("CREATE TABLE odd (a INTEGER DEFAULT (abs(-3)))", "'a' has the default abs"),
    "index": (
        "CREATE TABLE odd (a TEXT); CREATE INDEX i ON odd (lower(a))",
        "expression-based index i",
    ),
    "trigger": (
        "CREATE TABLE odd (a); CREATE TRIGGER t AFTER INSERT ON odd BEGIN SELECT 1; END",
        "it has a trigger",
    ),
    "type": ("CREATE TABLE odd (a)", "column 'a' has the type NullType"),
    "view": ("CREATE VIEW odd AS SELECT 1 AS a", "it is a view"),
    "virtual table": ("CREATE VIRTUAL TABLE odd USING fts5 (a)", "contains VIRTUAL"),
}


def make_tables(url: str) -> None:
    """Create tables as Flask-Migrate or `create_all` does, with rows."""
    metadata = sa.MetaData()
    sa.Table(
        "users", metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("boss", sa.Integer, sa.ForeignKey("users.id", ondelete="SET NULL")),
        sa.Column("name", sa.String(40), nullable=False, unique=True, server_default="it's 100%"),
        sa.Column("is_on", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("made", sa.DateTime, server_default=sa.func.now()),
        sa.Column("price", sa.Numeric(8, 2), server_default="1.5"),
        sa.Column("extra", sa.JSON),
        sa.Index("by_made", "made", "name"),
    )  # fmt: skip
    sa.Table(
        'a "b%', metadata,
        sa.Column("user.id", sa.Integer, sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("b;", sa.Integer, primary_key=True),
    )  # fmt: skip
    versions = sa.Table(
        "alembic_version", metadata, sa.Column("version_num", sa.String(32), primary_key=True)
    )
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        metadata.create_all(connection)
        users = metadata.tables["users"]
        connection.execute(users.insert(), [{"id": 1, "name": "a"}, {"id": 5, "name": "b"}])
        connection.execute(metadata.tables['a "b%'].insert(), {"user.id": 5, "b;": 2})
        connection.execute(versions.insert(), {"version_num": "0123456789ab"})


def description(url: str) -> dict[str, object]:
    """Return the content of a database in a form that does not depend on the engine."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    metadata = sa.MetaData()
    with engine.connect() as connection:
        metadata.reflect(connection)
        inspector = sa.inspect(connection)
        return {
            name: (
                sorted((c.name, c.nullable, c.primary_key) for c in table.c),
                sorted(map(str, inspector.get_foreign_keys(name))),
                sorted(
                    (tuple(str(one) for one in index["column_names"]), bool(index["unique"]))
                    for index in inspector.get_indexes(name)
                ),
                sorted(map(str, connection.execute(table.select()).all())),
            )
            for name, table in metadata.tables.items()
        }


def new_row(url: str) -> Mapping[str, object]:
    """Insert a row with defaults, and return it."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    users = sa.Table("users", sa.MetaData(), autoload_with=engine)
    with engine.begin() as connection:
        key = connection.execute(users.insert().values(boss=5)).inserted_primary_key
        assert key is not None
        row = connection.execute(users.select().where(users.c.id == key[0])).one()
    return dict(row._mapping)


@pytest.mark.live
@pytest.mark.parametrize("source", ["sqlite", "postgresql"])
@pytest.mark.parametrize("target", ["sqlite", "postgresql"])
def test_tables_without_migrations_are_restored(  # noqa: PLR0917 - pytest fixtures are parameters
    settings: HostSettings,
    write_tenant: Callable[..., Path],
    tenantry: RunCommand,
    postgres_server: Postgres,
    source: str,
    target: str,
) -> None:
    """A restore brings back tables, keys, indexes and defaults that no migration creates."""
    keys = {} if source == "sqlite" else {"DATABASE_URI": postgres_server.new_database()}
    write_tenant("acme", **keys)
    (settings.data_dir / "acme").mkdir(parents=True)
    make_tables(url_of(settings, "acme"))
    words = [] if target == "sqlite" else ["--database", postgres_server.new_database()]

    saved = tenantry("backup", "acme", "a")
    restored = tenantry("restore", "a", "--as", "globex", *words)

    assert (0, 0) == (saved[0], restored[0]), (saved, restored)
    url = url_of(settings, "globex")
    before, after = description(url_of(settings, "acme")), description(url)
    if source == target:
        assert before == after
    assert before.keys() == after.keys()
    row = new_row(url)
    assert ("it's 100%", False, 6) == (row["name"], row["is_on"], row["id"])
    assert row["made"] is not None


@pytest.mark.parametrize("case", NOT_HELD)
def test_what_a_capsule_cannot_hold_ends_the_backup(
    settings: HostSettings, write_tenant: Callable[..., Path], tmp_path: Path, case: str
) -> None:
    """`backup` exits 1 if a capsule could not hold a table, a view or a trigger."""
    write_tenant("acme")
    (settings.data_dir / "acme").mkdir(parents=True)
    statements, reason = NOT_HELD[case]
    engine = sa.create_engine(url_of(settings, "acme"), poolclass=sa.NullPool)
    with engine.begin() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.executescript(statements)

    with pytest.raises(CapsuleError, match="a capsule cannot hold 'odd'") as refused:
        backup(settings, "acme", tmp_path / "a")

    assert reason in str(refused.value)
    assert not (tmp_path / "a").exists()


def test_a_database_of_the_app_is_copied_with_its_log(
    settings: HostSettings, write_tenant: Callable[..., Path], tmp_path: Path
) -> None:
    """The copy of an app's own SQLite database contains the changes in its write-ahead log."""
    write_tenant("acme")
    folder = settings.data_dir / "acme"
    folder.mkdir(parents=True)
    (folder / "torn.db").write_bytes(b"SQLite format 3\0 and then nothing")
    (folder / "lonely.db-wal").write_text("a file of its own")
    with closing(sqlite3.connect(folder / "cache.db")) as app:
        app.execute("PRAGMA journal_mode=WAL")
        app.execute("CREATE TABLE kept (value)")
        app.execute("INSERT INTO kept VALUES (7)")
        app.commit()
        backup(settings, "acme", tmp_path / "a")

    members = members_of(tmp_path / "a")
    files = {name for name in members if name.startswith("files/")}
    assert {"files/cache.db", "files/lonely.db-wal", "files/torn.db"} == files
    copy = tmp_path / "copy.db"
    copy.write_bytes(members["files/cache.db"])
    with closing(sqlite3.connect(copy)) as found:
        assert [(7,)] == found.execute("SELECT value FROM kept").fetchall()
