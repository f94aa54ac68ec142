"""The database of a server that is restored into: empty before, and after whatever goes wrong."""

from collections.abc import Iterator
from contextlib import closing, suppress

import psycopg
import pytest
from sqlalchemy import URL, make_url

from postgres import Postgres
from tenantry.capsules.new_database import DatabaseError
from tenantry.capsules.postgres_database import NewPostgresDatabase

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
    """Return a connection of somebody else."""
    with closing(postgres_server.connect(str(url.database))) as connection:
        yield connection


Connection = psycopg.Connection[tuple[object, ...]]


def held(connection: Connection) -> list[str]:
    """Return what depends on the schema, by PostgreSQL's own description."""
    rows = connection.execute(
        "SELECT pg_describe_object(classid, objid, objsubid) FROM pg_depend "
        "WHERE refclassid = 'pg_namespace'::regclass AND refobjid = 'public'::regnamespace"
    )
    return sorted(str(row[0]) for row in rows)


def test_what_is_there_is_named_and_stays(url: URL, connection: Connection) -> None:
    """A database is refused for whatever it holds, of any kind."""
    told = []
    for name, statement in KINDS.items():
        connection.execute(statement)
        with pytest.raises(DatabaseError) as refused, NewPostgresDatabase(url):
            pass
        told.append((name, f"it holds {name}; name an empty one." in str(refused.value)))
        kind, _, identity = name.partition(" public.")
        connection.execute(f"DROP {kind} {identity}")  # it was there

    assert [(name, True) for name in KINDS] == told


def test_what_is_not_kept_goes(url: URL, connection: Connection) -> None:
    """Whatever migrations have made goes, and what somebody made after them stays."""
    with NewPostgresDatabase(url) as database:
        for statement in TANGLED:
            connection.execute(statement)
        database.note()
        connection.execute("CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'")

    assert ["function mine()"] == held(connection)


def test_migrations_that_fail_leave_nothing(url: URL, connection: Connection) -> None:
    """What they had committed before they failed goes as well."""
    with NewPostgresDatabase(url):
        for statement in TANGLED:
            connection.execute(statement)

    assert [] == held(connection)


def test_what_is_kept_stays(url: URL, connection: Connection) -> None:
    """Nothing but what was made is there in the end; a failure after that takes it back."""
    with suppress(ZeroDivisionError), NewPostgresDatabase(url) as database:
        connection.execute("CREATE TABLE t ()")
        database.note()
        database.keep()
        raise ZeroDivisionError
    assert [] == held(connection)

    with NewPostgresDatabase(url) as database:
        connection.execute("CREATE TABLE t ()")
        database.note()
        database.keep()
    assert ["table t"] == held(connection)


def test_an_extension_is_nothing_of_the_tenants(url: URL, connection: Connection) -> None:
    """One that is there is no reason to refuse, and stays; one that migrations make goes again."""
    with NewPostgresDatabase(url) as database:
        connection.execute("CREATE EXTENSION vector; CREATE TABLE t (v vector)")
        database.note()
    assert [] == held(connection)

    connection.execute("CREATE EXTENSION vector")
    before = held(connection)
    with NewPostgresDatabase(url):
        connection.execute("CREATE TABLE t (v vector)")
    assert before == held(connection)


def test_one_restore_at_a_time(url: URL, connection: Connection) -> None:
    """A database in which another restore works is refused, and so it is in each of its schemas."""
    connection.execute("CREATE SCHEMA acme")
    other = url.update_query_dict({"options": "-csearch_path=acme"})

    with NewPostgresDatabase(url), NewPostgresDatabase(other):
        for one in (url, other):
            with (
                pytest.raises(DatabaseError, match="another restore works"),
                NewPostgresDatabase(one),
            ):
                pass


def test_what_a_killed_restore_left_is_removed(url: URL, connection: Connection) -> None:
    """The next restore removes what it had noted; what came after that is named, and stays."""
    left = NewPostgresDatabase(url).__enter__()
    for statement in TANGLED:
        connection.execute(statement)
    left.note()
    left._connection.close()  # as the system does it for a process that is killed

    with NewPostgresDatabase(url):
        assert ["table tenantry_restoring"] == held(connection)
    assert [] == held(connection)
    NewPostgresDatabase(url).__enter__()._connection.close()
    connection.execute("CREATE TABLE t ()")

    reason = r"it holds table public\.t; a restore that was killed had begun here; name an empty"
    with pytest.raises(DatabaseError, match=reason), NewPostgresDatabase(url):
        pass


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mysql+pymysql://a/b", "use sqlite or postgresql"),
        ("postgresql+psycopg://postgres@127.0.0.1:1/a", "cannot be used: "),
    ],
)
def test_what_is_none_is_refused(text: str, reason: str) -> None:
    """Another engine, or a server that does not answer: one line, without the password."""
    url = make_url(text).set(password="MARKER")

    with pytest.raises(DatabaseError, match=reason) as refused, NewPostgresDatabase(url):
        pass

    assert "MARKER" not in str(refused.value)


def test_a_schema_that_is_not_there_is_refused(url: URL) -> None:
    """It is the operator who makes schemas, but for clones."""
    missing = url.update_query_dict({"options": "-csearch_path=missing"})

    with (
        pytest.raises(DatabaseError, match="run CREATE SCHEMA first"),
        NewPostgresDatabase(missing),
    ):
        pass
