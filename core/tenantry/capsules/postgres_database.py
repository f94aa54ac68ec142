"""Prepares the PostgreSQL database of a restored tenant, and empties the database after a failure.

Only one restore at a time can use a database or a schema of a database. During the restore, the
mark table in the database lists the objects that the restore created. If a restore is killed,
the next restore removes only the objects that the mark table lists.
"""

from contextlib import ExitStack
from typing import Self

from sqlalchemy import URL, Connection, NullPool, create_engine

from tenantry.capsules.new_database import DatabaseError, NewDatabase, cleanup_error
from tenantry.capsules.snapshot import quote
from tenantry.database.url import with_schema
from tenantry.errors import TenantryError
from tenantry.migrations.version_table import describe_error, with_connect_timeout

MARK_TABLE = "tenantry_restoring"

SHOWN_OBJECTS = 3
"""Number of objects that the error message about a database that is not empty names."""

KEEPALIVE_S = 60
"""Idle seconds before a keepalive packet on the connection that holds the restore's lock.

The connection is idle while another connection writes the rows.
"""

_TRY_LOCK = (
    "SELECT pg_try_advisory_lock(hashtextextended('tenantry.restore.' || current_schema(), 0))"
)
"""Statement that tries to lock the current schema for a restore.

The lock's key contains the name of the schema, because each schema of a database can belong to
another tenant.
"""

_OBJECTS = """
    SELECT object.type, object.identity
    FROM pg_depend AS held, pg_identify_object(held.classid, held.objid, 0) AS object
    WHERE held.refclassid = 'pg_namespace'::regclass AND held.deptype = 'n'
      AND held.refobjid = quote_ident(current_schema())::regnamespace
      AND NOT EXISTS (SELECT FROM pg_depend AS part WHERE part.classid = held.classid
                      AND part.objid = held.objid AND part.deptype IN ('e', 'i'))
"""
"""Query that returns the objects of any type in the current schema.

The query excludes members of extensions (`e`) and internal parts of other objects (`i`).
"""

_DROP_TYPES = {
    "aggregate": "ROUTINE", "function": "ROUTINE", "procedure": "ROUTINE",
    "statistics object": "STATISTICS",
}  # fmt: skip
"""Name of an object's type → the keyword of the DROP statement, if name and keyword differ."""

DATABASE, SCHEMA = "DATABASE", "SCHEMA"
"""Kinds of objects that `create_clone_database` creates and adds to the mark table."""

Objects = frozenset[tuple[str, str]]
"""Pairs of an object's type and the object's SQL identity."""


class NewPostgresDatabase(NewDatabase):
    """An empty PostgreSQL database or schema of a restored tenant.

    The end of the `with` block empties the database, unless `commit` was called. A database with
    extensions counts as empty. If another program creates objects while the migrations run, the
    cleanup drops the other program's objects, too. Objects that another program creates after the
    migrations stay.

    Args:
        url: the URL of the database, with the schema unless the schema is the default schema.

    Raises:
        DatabaseError: the URL's engine is not supported.
    """

    def __init__(self, url: URL) -> None:
        if url.drivername != "postgresql+psycopg":
            raise DatabaseError(f"{_shown(url)}: use sqlite or postgresql+psycopg.")
        self.url = url
        self.disk_folder = None
        self._mark = MARK_TABLE
        self._before: Objects = frozenset()
        self._migrated: Objects | None = None
        self._is_committed = False

    def __enter__(self) -> Self:
        try:
            self._connection = _connect(self.url)
            try:
                self._claim()
            except BaseException:
                self._connection.close()
                raise
        except TenantryError:
            raise
        except Exception as error:
            text = f"cannot use {_shown(self.url)}: {describe_error(error)}"
            remedy = "create it with CREATE DATABASE, or correct the URL"
            raise DatabaseError(f"{text}; {remedy}.") from error
        return self

    def _claim(self) -> None:
        """Lock the database, remove a killed restore's objects, and create the mark table.

        Raises:
            DatabaseError: the database is locked or not empty, or the schema does not exist.
        """
        connection, shown = self._connection, _shown(self.url)
        schema = connection.exec_driver_sql("SELECT quote_ident(current_schema())").scalar()
        if schema is None:
            raise DatabaseError(f"{shown}: its schema does not exist; run CREATE SCHEMA first.")
        if not connection.exec_driver_sql(_TRY_LOCK).scalar():
            text = f"{shown}: another restore is using it; wait for it, or name another database."
            raise DatabaseError(text)
        self._mark = f"{schema}.{MARK_TABLE}"
        is_marked = ("table", self._mark) in _list_objects(connection)
        if is_marked:
            _drop(connection, _marked_objects(connection))
        self._before = _list_objects(connection) - {("table", self._mark)}
        names = sorted(f"{kind} {name}" for kind, name in self._before if kind != "extension")
        if names:
            raise DatabaseError(_not_empty(shown, names, is_marked=is_marked))
        if not is_marked:
            _create_mark(connection)

    def record_migrated(self) -> None:
        """Record the objects that the migrations created, in memory and in the mark table."""
        objects = _list_objects(self._connection) - self._before - {("table", self._mark)}
        self._migrated = objects
        _add_to_mark(self._connection, objects)

    def commit(self) -> None:
        """Drop the mark table, so that a later restore does not empty the database."""
        self._connection.exec_driver_sql(f"DROP TABLE {MARK_TABLE}")
        self._is_committed = True

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is not None or not self._is_committed:
                self._drop_migrated()
        except Exception as failure:  # noqa: BLE001 - the driver raises many classes
            text = f"cannot empty {_shown(self.url)}: {describe_error(failure)}; drop it yourself."
            raise cleanup_error(error, text) from error
        finally:
            self._connection.close()

    def _drop_migrated(self) -> None:
        with _connect(self.url) as connection:  # the first connection may have failed
            objects = self._migrated
            if objects is None:  # a migration failed
                objects = _list_objects(connection) - self._before
            _drop(connection, objects | {("table", self._mark)})


def create_clone_database(url: URL, name: str, undo: ExitStack) -> URL:
    """Create a database or a schema for a clone on the tenant's server; return the new URL.

    For a tenant in the schema `public`, `create_clone_database` creates a database. For a tenant in
    another schema, `create_clone_database` creates a schema in the tenant's database. If a killed
    clone left a database or schema with the same name, `create_clone_database` first drops the old
    database or schema.

    Args:
        url: the URL of the tenant's database on a server.
        name: the name of the new database or schema.
        undo: a stack that receives a callback, which drops the new database or schema.

    Raises:
        DatabaseError: the server refuses to create the database or schema.
    """
    try:
        with _connect(url) as connection:
            schema = connection.exec_driver_sql("SELECT current_schema()").scalar()
            quoted = quote(connection, name)
    except Exception as error:
        raise DatabaseError(f"cannot use {_shown(url)}: {describe_error(error)}.") from error
    if schema == "public":
        kind, clone_url, drop = DATABASE, url.set(database=name), f"DROP DATABASE {quoted}"
    else:
        kind, clone_url = SCHEMA, with_schema(url, name)
        drop = f"DROP SCHEMA {quoted} CASCADE"
    if _is_left_by_clone(clone_url, kind):
        _execute(url, drop)
    _execute(url, f"CREATE {kind} {quoted}")
    undo.callback(_execute, url, drop)
    with _connect(clone_url) as connection:
        _create_mark(connection)
        _add_to_mark(connection, frozenset({(kind, name)}))
    return clone_url


def _is_left_by_clone(url: URL, kind: str) -> bool:
    """Whether a killed clone left the database or schema, and no process uses the database."""
    try:
        with _connect(url) as connection:
            is_marked = any(marked == kind for marked, _ in _marked_objects(connection))
            return is_marked and bool(connection.exec_driver_sql(_TRY_LOCK).scalar())
    except Exception:  # noqa: BLE001 - the database or the mark table is missing
        return False


def _execute(url: URL, statement: str) -> None:
    """Run a statement outside a transaction, because CREATE DATABASE fails in a transaction.

    Raises:
        DatabaseError: the server rejects the statement.
    """
    try:
        with _connect(url) as connection:
            connection.exec_driver_sql(statement)
    except Exception as error:
        text = f"{statement}: {describe_error(error)}; name an empty database with --database."
        raise DatabaseError(text) from error


def _connect(url: URL) -> Connection:
    """Return a connection that commits each statement and that the server never closes as idle."""
    options = {"keepalives_idle": KEEPALIVE_S, "application_name": "tenantry restore"}
    engine = create_engine(
        with_connect_timeout(url),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args=options,
    )
    connection = engine.connect()
    if (connection.dialect.server_version_info or (0,)) >= (14,):
        connection.exec_driver_sql("SET idle_session_timeout = 0")
    return connection


def _list_objects(connection: Connection) -> Objects:
    rows = connection.exec_driver_sql(_OBJECTS)
    return frozenset((kind, identity) for kind, identity in rows)


def _create_mark(connection: Connection) -> None:
    connection.exec_driver_sql(f"CREATE TABLE {MARK_TABLE} (kind text, name text)")


def _marked_objects(connection: Connection) -> Objects:
    rows = connection.exec_driver_sql(f"SELECT kind, name FROM {MARK_TABLE}")  # noqa: S608
    return frozenset((kind, identity) for kind, identity in rows)


def _add_to_mark(connection: Connection, objects: Objects) -> None:
    """Add objects to the mark table in one statement, because one statement is atomic."""
    statement = f"INSERT INTO {MARK_TABLE} SELECT * FROM unnest(%s::text[], %s::text[])"  # noqa: S608
    lists = ([kind for kind, _ in objects], [identity for _, identity in objects])
    connection.exec_driver_sql(statement, lists)


def _drop(connection: Connection, objects: Objects) -> None:
    for kind, identity in sorted(objects):
        if kind not in (DATABASE, SCHEMA):
            # The identity is SQL text from the server, so a `%` in the identity is not a parameter.
            connection.exec_driver_sql(
                f"DROP {_DROP_TYPES.get(kind, kind)} IF EXISTS {identity} CASCADE",
                execution_options={"no_parameters": True},
            )


def _not_empty(shown: str, names: list[str], *, is_marked: bool) -> str:
    more = f" and {len(names) - SHOWN_OBJECTS} more" if len(names) > SHOWN_OBJECTS else ""
    killed = "; a killed restore had begun here" if is_marked else ""
    text = f"{shown} is not empty: it holds {', '.join(names[:SHOWN_OBJECTS])}{more}{killed}"
    return f"{text}; name an empty database."


def _shown(url: URL) -> str:
    return url.render_as_string(hide_password=True)
