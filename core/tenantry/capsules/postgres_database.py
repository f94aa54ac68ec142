"""The database of a server that a capsule is restored into: empty before, and after a failure.

PostgreSQL, through psycopg. One restore at a time works in a database, or in a schema. What one
that was killed left there is known by a mark, a table, and removed by the next; nothing else is.
"""

from typing import Self

from sqlalchemy import URL, Connection, NullPool, create_engine

from tenantry.capsules.new_database import DatabaseError, NewDatabase
from tenantry.capsules.rows import run
from tenantry.errors import TenantryError
from tenantry.migrations.version_table import describe_error, with_connect_timeout

MARK = "tenantry_restoring"
"""The table that is there while a database is not whole: what was made in it, by kind and name."""

SHOWN = 3
"""How much of what is in a database is named when it is refused."""

KEEPALIVE_S = 60
"""The connection that holds the lock says nothing while rows go in, and must not be forgotten."""

_TURN = "SELECT pg_try_advisory_lock(hashtextextended('tenantry.restore.' || current_schema(), 0))"
"""An advisory lock is one database's, of which each schema may be a tenant's."""

_HELD = """
    SELECT made.type, made.identity
    FROM pg_depend AS held, pg_identify_object(held.classid, held.objid, 0) AS made
    WHERE held.refclassid = 'pg_namespace'::regclass AND held.deptype = 'n'
      AND held.refobjid = quote_ident(current_schema())::regnamespace
      AND NOT EXISTS (SELECT FROM pg_depend AS part WHERE part.classid = held.classid
                      AND part.objid = held.objid AND part.deptype IN ('e', 'i'))
"""
"""What a schema holds, of whatever kind: all that depends on it, without what is an extension's
(`e`) or a part of something else (`i`)."""

_WORDS = {
    "aggregate": "ROUTINE", "function": "ROUTINE", "procedure": "ROUTINE",
    "statistics object": "STATISTICS",
}  # fmt: skip
"""What DROP calls them where it has another word."""

_OWN_PLACE = ("DATABASE", "SCHEMA")
"""What a clone has made to be in, and drops as a whole."""

Held = frozenset[tuple[str, str]]
"""Kinds and names."""


class NewPostgresDatabase(NewDatabase):
    """An empty database of a server, or an empty schema, until the end of a `with` block.

    What is an extension's counts as nothing. What somebody else makes there while the migrations
    run, who knows nothing of the lock, cannot be told from what they make; what comes later can.

    Args:
        url: of the database, and of its schema if that is not the usual one.

    Raises:
        DatabaseError: it is of an engine that is not known here.
    """

    def __init__(self, url: URL) -> None:
        if url.drivername != "postgresql+psycopg":
            raise DatabaseError(f"{_shown(url)}: use sqlite or postgresql+psycopg.")
        self.url = url
        self.folder = None
        self._mark = MARK
        self._before: Held = frozenset()
        self._made: Held | None = None
        self._is_kept = False

    def __enter__(self) -> Self:
        remedy = "make it with CREATE DATABASE, or mend the URL"
        try:
            self._connection = _connected(self.url)
            try:
                self._take()
            except BaseException:
                self._connection.close()
                raise
        except TenantryError:
            raise
        except Exception as error:
            text = f"{_shown(self.url)} cannot be used: {describe_error(error)}; {remedy}."
            raise DatabaseError(text) from error
        return self

    def _take(self) -> None:
        """Lock it, remove what a killed restore left, check that it is empty, and mark it."""
        connection, shown = self._connection, _shown(self.url)
        schema = run(connection, "SELECT quote_ident(current_schema())").scalar()
        if schema is None:
            raise DatabaseError(f"{shown}: its schema is not there; run CREATE SCHEMA first.")
        if not run(connection, _TURN).scalar():
            raise DatabaseError(f"{shown}: another restore works in it; wait, or name another one.")
        self._mark = f"{schema}.{MARK}"
        is_marked = ("table", self._mark) in _held(connection)
        if is_marked:
            _drop(connection, _noted(connection, self._mark))
        self._before = _held(connection) - {("table", self._mark)}
        names = sorted(f"{kind} {name}" for kind, name in self._before if kind != "extension")
        if names:
            more = f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)
            text = f"{shown} is not empty: it holds {', '.join(names[:SHOWN])}{more}"
            killed = "; a restore that was killed had begun here" * is_marked
            raise DatabaseError(f"{text}{killed}; name an empty one.")
        if not is_marked:
            run(connection, f"CREATE TABLE {self._mark} (kind text, name text)")

    def note(self) -> None:
        """Remember what its migrations have made, here and, for who comes after us, there."""
        self._made = _held(self._connection) - self._before - {("table", self._mark)}
        _note(self._connection, self._mark, self._made)

    def keep(self) -> None:
        """Take the mark away."""
        run(self._connection, f"DROP TABLE {self._mark}")
        self._is_kept = True

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is not None or not self._is_kept:
                self._take_back()
        except Exception as left:  # noqa: BLE001 - whatever a driver raises
            text = f"{_shown(self.url)} could not be emptied again: {describe_error(left)}"
            raise DatabaseError(f"{text}; drop it yourself.") from error
        finally:
            self._connection.close()

    def _take_back(self) -> None:
        with _connected(self.url) as connection:  # the other one may be what has failed
            made = self._made
            if made is None:  # the migrations have failed
                made = _held(connection) - self._before
            _drop(connection, made | {("table", self._mark)})


def _held(connection: Connection) -> Held:
    return frozenset((kind, name) for kind, name in run(connection, _HELD))


def _noted(connection: Connection, mark: str) -> Held:
    rows = run(connection, f"SELECT kind, name FROM {mark}")  # noqa: S608 - quoted
    return frozenset((kind, name) for kind, name in rows)


def _note(connection: Connection, mark: str, made: Held) -> None:
    statement = f"INSERT INTO {mark} SELECT * FROM unnest(%s::text[], %s::text[])"  # noqa: S608
    lists = ([kind for kind, _ in made], [name for _, name in made])
    connection.exec_driver_sql(statement, lists)


def _drop(connection: Connection, made: Held) -> None:
    for kind, name in sorted(made):
        if kind not in _OWN_PLACE:
            run(connection, f"DROP {_WORDS.get(kind, kind)} IF EXISTS {name} CASCADE")


def mark_place(url: URL, kind: str, name: str) -> None:
    """Mark a database or a schema that was made for a clone; a restore into it takes it away.

    Args:
        url: of the database, and of the schema.
        kind: `DATABASE` or `SCHEMA`.
        name: its own.
    """
    with _connected(url) as connection:
        run(connection, f"CREATE TABLE {MARK} (kind text, name text)")
        _note(connection, MARK, frozenset({(kind, name)}))


def is_left_place(url: URL, kind: str) -> bool:
    """Whether a database or a schema is what a killed clone has left, and nobody works in it."""
    try:
        with _connected(url) as connection:
            kinds = {noted for noted, _ in _noted(connection, MARK)}
            return kind in kinds and bool(run(connection, _TURN).scalar())
    except Exception:  # noqa: BLE001 - there is none, or no mark in it
        return False


def execute(url: URL, statement: str) -> None:
    """Run one statement by itself, as CREATE DATABASE wants it.

    Raises:
        DatabaseError: the server refuses it.
    """
    try:
        with _connected(url) as connection:
            run(connection, statement)
    except Exception as error:
        text = f"{statement}: {describe_error(error)}; name an empty database with --database."
        raise DatabaseError(text) from error


def _connected(url: URL) -> Connection:
    """Return a connection on which each statement is a transaction of its own; it may be idle."""
    options = {"keepalives_idle": KEEPALIVE_S, "application_name": "tenantry restore"}
    engine = create_engine(
        with_connect_timeout(url),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args=options,
    )
    connection = engine.connect()
    if (connection.dialect.server_version_info or (0,)) >= (14,):
        run(connection, "SET idle_session_timeout = 0")
    return connection


def _shown(url: URL) -> str:
    return url.render_as_string(hide_password=True)
