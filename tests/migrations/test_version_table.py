"""Tenantry reads a database's revisions through the driver or through SQLAlchemy."""

from pathlib import Path

import pytest
from sqlalchemy import Engine, NullPool, create_engine
from sqlalchemy.engine import make_url

from tenantry.database.probe import probe_database
from tenantry.migrations.version_table import (
    LostDatabaseError,
    SchemaError,
    read_versions,
    read_versions_on,
)


def read_through(engine: Engine) -> frozenset[str]:
    """Return the revisions that Tenantry reads through a SQLAlchemy engine."""
    with engine.connect() as connection:
        return read_versions_on(connection)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_both_readers_return_the_same(kind: str, postgres_url: str, tmp_path: Path) -> None:
    """Reading `alembic_version` through the driver and through SQLAlchemy gives the same result."""
    url = make_url(postgres_url if kind == "postgresql" else f"sqlite:///{tmp_path}/a.sqlite3")
    engine = create_engine(url, poolclass=NullPool)
    empty = read_versions(url), read_through(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('shop_1'), ('news_1')")

    there = read_versions(url), read_through(engine)

    assert (({*()},) * 2, ({"shop_1", "news_1"},) * 2) == (empty, there)


@pytest.mark.parametrize("is_there", [False, True])
def test_another_schema_than_that_of_the_url_is_an_error(postgres_url: str, is_there: bool) -> None:
    """If the PostgreSQL schema is missing or is not the expected one, reading revisions fails."""
    url = make_url(postgres_url)
    admin = create_engine(url, poolclass=NullPool)
    if is_there:
        with admin.begin() as connection:
            # The new schema comes before the schema `public` in the search path.
            connection.exec_driver_sql(f"CREATE SCHEMA {url.username}")
    else:
        url = url.update_query_dict({"options": "-csearch_path=acme"})
    errors = []
    for read in (read_versions, lambda url: read_through(create_engine(url, poolclass=NullPool))):
        with pytest.raises(SchemaError) as caught:
            read(url)
        errors.append(str(caught.value))

    missing = (
        "the schema 'acme' does not exist, or this user may not use it; run CREATE SCHEMA first."
    )
    other = (
        "it would create tables in schema 'postgres', but its URL names 'public'; set "
        "?options=-csearch_path%3Dpostgres or ?options=-csearch_path%3Dpublic."
    )
    assert [other if is_there else missing] * 2 == errors
    assert errors[0] == f"{probe_database('acme', url.render_as_string()).problem}."


def test_a_missing_file_is_not_created(tmp_path: Path) -> None:
    """Reading the revisions of a missing SQLite database does not create the file."""
    found = read_versions(make_url(f"sqlite:///{tmp_path}/a.sqlite3"))

    assert (frozenset(), []) == (found, [*tmp_path.iterdir()])


def test_a_lost_file_is_an_error(tmp_path: Path) -> None:
    """If a database file is gone but its marker file exists, reading revisions fails."""
    (tmp_path / "a.sqlite3.made").touch()

    with pytest.raises(LostDatabaseError, match=r"a\.sqlite3 is gone; restore it, or delete"):
        read_versions(make_url(f"sqlite:///{tmp_path}/a.sqlite3"))
