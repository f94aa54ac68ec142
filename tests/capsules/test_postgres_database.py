"""A restore needs an empty PostgreSQL database, and leaves it empty if the restore fails."""

from collections.abc import Iterator
from contextlib import closing, suppress

import psycopg
import pytest
from sqlalchemy import URL, make_url

from postgres import Postgres
from tenantry.capsules.new_database import DatabaseError
from tenantry.capsules.postgres_database import NewPostgresDatabase
from tenantry.capsules.row_import import importing_rows

pytestmark = pytest.mark.live

KINDS = {
    "aggregate public.a(integer)": "CREATE AGGREGATE a(int) (sfunc = int4pl, stype = int)",
    "collation public.c": 'CREATE COLLATION c FROM "C"',
    "type public.t": "CREATE TYPE t AS (a int)",
    "function public.f()": "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "materialized view public.m": "CREATE MATERIALIZED VIEW m AS SELECT 1",
    "operator public.##(integer,integer)":
        "CREATE OPERATOR ## (leftarg = int, rightarg = int, function = int4pl)",
    "procedure public.p()": "CREATE PROCEDURE p() LANGUAGE sql AS 'SELECT 1'",
    "sequence public.s": "CREATE SEQUENCE s",
    'table public."a%b"': 'CREATE TABLE "a%b" ()',
    "text search configuration public.x": "CREATE TEXT SEARCH CONFIGURATION x (copy = simple)",
    "type public.d": "CREATE DOMAIN d AS int",
    "type public.e": "CREATE TYPE e AS ENUM ('a')",
    "view public.v": "CREATE VIEW v AS SELECT 1",
}  # fmt: skip

TANGLED = (
    "CREATE TYPE mood AS ENUM ('a')",
    "CREATE TYPE span AS RANGE (subtype = int)",
    "CREATE FUNCTION f(mood) RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY, s serial, m mood, r span)",
    "CREATE STATISTICS st ON id, s FROM t",
    "CREATE VIEW v AS SELECT f(m) FROM t",
    'CREATE TABLE "a%b" (id serial)',
)


@pytest.fixture(name="url")
def _url(postgres_url: str) -> URL:
    return make_url(postgres_url)


@pytest.fixture(name="connection")
def _connection(
    postgres_server: Postgres, url: URL
) -> Iterator["psycopg.Connection[tuple[object, ...]]"]:
    """Return a database connection, as another program would open it."""
    with closing(postgres_server.connect(str(url.database))) as connection:
        yield connection


Connection = psycopg.Connection[tuple[object, ...]]


def held(connection: Connection) -> list[str]:
    """Return the names by which PostgreSQL describes the objects in the schema."""
    rows = connection.execute(
        "SELECT pg_describe_object(classid, objid, objsubid) FROM pg_depend "
        "WHERE refclassid = 'pg_namespace'::regclass AND refobjid = 'public'::regnamespace"
    )
    return sorted(str(row[0]) for row in rows)


def test_an_object_of_any_type_is_named_and_stays(url: URL, connection: Connection) -> None:
    """A restore rejects a PostgreSQL database that contains any object, and keeps that object."""
    named = []
    for name, statement in KINDS.items():
        connection.execute(statement)
        with pytest.raises(DatabaseError) as refused, NewPostgresDatabase(url):
            pass
        named.append((name, f"it holds {name}; name an empty database." in str(refused.value)))
        kind, _, identity = name.partition(" public.")
        # The `DROP` would fail if the restore had removed the object.
        connection.execute(f"DROP {kind} {identity}")

    assert [(name, True) for name in KINDS] == named


def test_objects_that_are_not_committed_go(url: URL, connection: Connection) -> None:
    """A restore that fails drops what its migrations created, but not other programs' objects."""
    with NewPostgresDatabase(url) as database:
        for statement in TANGLED:
            connection.execute(statement)
        database.record_migrated()
        connection.execute("CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'")

    assert ["function mine()"] == held(connection)


def test_failed_migrations_leave_nothing(url: URL, connection: Connection) -> None:
    """A restore that fails also drops objects that earlier migrations had committed."""
    with NewPostgresDatabase(url):
        for statement in TANGLED:
            connection.execute(statement)

    assert [] == held(connection)


def test_a_restore_connects_with_the_options_of_its_tenant(
    url: URL, connection: Connection
) -> None:
    """Each connection of a restore has the tenant's `DATABASE_OPTIONS`."""
    options = {"application_name": "acme"}
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'acme'"

    counts = []
    with NewPostgresDatabase(url, options):
        counts.append(connection.execute(query).fetchone())
        with importing_rows(url, "postgresql", options):
            counts.append(connection.execute(query).fetchone())

    assert [(1,), (2,)] == counts


def test_committed_objects_stay(url: URL, connection: Connection) -> None:
    """After a successful restore, the database no longer contains the restore's marker."""
    with suppress(ZeroDivisionError), NewPostgresDatabase(url) as database:
        connection.execute("CREATE TABLE t ()")
        database.record_migrated()
        database.commit()
        raise ZeroDivisionError
    assert [] == held(connection)

    with NewPostgresDatabase(url) as database:
        connection.execute("CREATE TABLE t ()")
        database.record_migrated()
        database.commit()
    assert ["table t"] == held(connection)


def test_an_extension_does_not_count(url: URL, connection: Connection) -> None:
    """A restore accepts an existing extension, and drops extensions that its migrations created."""
    with NewPostgresDatabase(url) as database:
        connection.execute("CREATE EXTENSION vector; CREATE TABLE t (v vector)")
        database.record_migrated()
    assert [] == held(connection)

    connection.execute("CREATE EXTENSION vector")
    before = held(connection)
    with NewPostgresDatabase(url):
        connection.execute("CREATE TABLE t (v vector)")
    assert before == held(connection)


def test_one_restore_uses_a_schema(url: URL, connection: Connection) -> None:
    """Two restores cannot use the same PostgreSQL schema at once, but can use different schemas."""
    connection.execute("CREATE SCHEMA acme")
    other = url.update_query_dict({"options": "-csearch_path=acme"})

    with NewPostgresDatabase(url), NewPostgresDatabase(other):
        for one in (url, other):
            with (
                pytest.raises(DatabaseError, match="another restore is using it"),
                NewPostgresDatabase(one),
            ):
                pass


def test_the_next_restore_removes_what_a_killed_one_left(url: URL, connection: Connection) -> None:
    """The next restore drops the objects of a killed restore, and keeps objects created later."""
    left = NewPostgresDatabase(url).__enter__()
    for statement in TANGLED:
        connection.execute(statement)
    left.record_migrated()
    left._connection.close()  # Close the connection, as the kernel does for a killed process.

    with NewPostgresDatabase(url):
        assert ["table tenantry_restoring"] == held(connection)
    assert [] == held(connection)
    NewPostgresDatabase(url).__enter__()._connection.close()
    connection.execute("CREATE TABLE t ()")

    reason = r"it holds table public\.t; a killed restore had begun here; name an empty"
    with pytest.raises(DatabaseError, match=reason), NewPostgresDatabase(url):
        pass


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mysql+pymysql://a/b", "use sqlite or postgresql"),
        ("postgresql+psycopg://postgres@127.0.0.1:1/a", "cannot use "),
    ],
)
def test_an_unusable_database_is_rejected(text: str, reason: str) -> None:
    """The error about an unreachable or unsupported database server shows no password."""
    url = make_url(text).set(password="MARKER")

    with pytest.raises(DatabaseError, match=reason) as refused, NewPostgresDatabase(url):
        pass

    assert "MARKER" not in str(refused.value)


def test_a_missing_schema_is_rejected(url: URL) -> None:
    """A restore rejects a missing PostgreSQL schema, because only `clone` creates schemas."""
    missing = url.update_query_dict({"options": "-csearch_path=missing"})

    with (
        pytest.raises(DatabaseError, match="run CREATE SCHEMA first"),
        NewPostgresDatabase(missing),
    ):
        pass
