"""Prepares a PostgreSQL database for a restored tenant, and empties it if the restore fails.

Two restores cannot use the same schema at the same time. During a restore, a table in the database,
the mark table, lists all objects that the restore has created. If a restore is killed, the next
restore removes only the objects in the mark table.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Self

from sqlalchemy import URL, Connection, NullPool, create_engine

from tenantry.capsules.capsule import MARK_TABLE
from tenantry.capsules.new_database import DatabaseError, NewDatabase, cleanup_error
from tenantry.capsules.snapshot import quote
from tenantry.database.options import NO_OPTIONS, command_options
from tenantry.database.pooler import POOLED, is_pooled
from tenantry.database.url import with_schema
from tenantry.errors import TenantryError
from tenantry.migrations.version_table import describe_error, with_connect_timeout

SHOWN_OBJECTS = 3
"""Maximum number of objects that the error about a database that is not empty names."""

KEEPALIVE_S = 60
"""Seconds without traffic before the kernel sends a keepalive packet.

The connection that holds the lock is idle while another connection writes rows.
"""

_TRY_LOCK = (
    "SELECT pg_try_advisory_lock(hashtextextended('tenantry.restore.' || current_schema(), 0))"
)
"""A query that tries to lock the current schema.

The key of the lock contains the name of the schema, because each schema of a database can belong to
a different tenant.
"""

_OBJECTS = """
    SELECT object.type, object.identity
    FROM pg_depend AS held, pg_identify_object(held.classid, held.objid, 0) AS object
    WHERE held.refclassid = 'pg_namespace'::regclass AND held.deptype = 'n'
      AND held.refobjid = quote_ident(current_schema())::regnamespace
      AND NOT EXISTS (SELECT FROM pg_depend AS part WHERE part.classid = held.classid
                      AND part.objid = held.objid AND part.deptype IN ('e', 'i'))
"""
"""A query that returns all objects in the current schema.

The query excludes objects of extensions (`e`) and internal parts of other objects (`i`).
"""

_MARK_OWNER = """
    SELECT pg_get_userbyid(relowner)
    FROM pg_class
    WHERE relname = %s AND relnamespace = quote_ident(current_schema())::regnamespace
"""
"""A query that returns the owner of the mark table.

Every role that may create tables could create a table with the name of the mark table.
"""

_DROP_TYPES = {
    "aggregate": "ROUTINE", "function": "ROUTINE", "procedure": "ROUTINE",
    "statistics object": "STATISTICS",
}  # fmt: skip
"""Maps the name of an object type to the keyword in a DROP statement, if they differ."""

DATABASE, SCHEMA = "DATABASE", "SCHEMA"
"""The objects that `create_clone_database` can create."""

Objects = frozenset[tuple[str, str]]
"""The type and the SQL identity of each object."""


class NewPostgresDatabase(NewDatabase):
    """An empty PostgreSQL database or schema for a restored tenant.

    Unless `commit` is called, the end of the `with` block empties the database. A database with
    extensions counts as empty. The cleanup also drops objects that other programs create while the
    migrations run, but no objects that other programs create later.

    Args:
        url: the URL of the database. If the schema is not the default schema, the URL must name the
            schema.
        options: the tenant's `DATABASE_OPTIONS`.

    Raises:
        DatabaseError: the engine in the URL is not supported.
    """

    def __init__(self, url: URL, options: Mapping[str, Any] = NO_OPTIONS) -> None:
        if url.drivername != "postgresql+psycopg":
            raise DatabaseError(f"{_shown(url)}: use sqlite or postgresql+psycopg.")
        self.url = url
        self.options = options
        self.disk_folder = None
        self._mark = MARK_TABLE
        self._before: Objects = frozenset()
        self._migrated: Objects | None = None
        self._is_committed = False

    def __enter__(self) -> Self:
        try:
            self._connection = _connect(self.url, self.options)
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
        """Lock the database, remove the objects of a killed restore, and create the mark table.

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
            _check_mark_owner(connection, shown)
            _drop(connection, _marked_objects(connection))
        self._before = _list_objects(connection) - {("table", self._mark)}
        names = sorted(f"{kind} {name}" for kind, name in self._before if kind != "extension")
        if names:
            raise DatabaseError(_not_empty(shown, names, is_marked=is_marked))
        if not is_marked:
            _create_mark(connection)

    def record_migrated(self) -> None:
        """Record what the migrations created, in memory and in the mark table."""
        objects = _list_objects(self._connection) - self._before - {("table", self._mark)}
        self._migrated = objects
        _add_to_mark(self._connection, objects)

    def commit(self) -> None:
        """Drop the mark table, so that no later restore empties the database."""
        self._connection.exec_driver_sql(f"DROP TABLE {MARK_TABLE}")
        self._is_committed = True

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is not None or not self._is_committed:
                self._drop_migrated()
        except Exception as failure:  # noqa: BLE001 - drivers raise many classes of exceptions
            text = f"cannot empty {_shown(self.url)}: {describe_error(failure)}; drop it yourself."
            raise cleanup_error(error, text) from error
        finally:
            self._connection.close()

    def _drop_migrated(self) -> None:
        with _connect(self.url, self.options) as connection:  # the first connection may be broken
            objects = self._migrated
            if objects is None:  # a migration has failed
                objects = _list_objects(connection) - self._before
            _drop(connection, objects | {("table", self._mark)})


def create_clone_database(
    url: URL, name: str, undo: ExitStack, options: Mapping[str, Any] = NO_OPTIONS
) -> URL:
    """Create a database or schema for a clone of a tenant, and return its URL.

    If the tenant uses the schema `public`, the clone gets a new database on the same server. If the
    tenant uses another schema, the clone gets a new schema in the same database. A database or
    schema that a killed `clone` command left under the same name is dropped first.

    Args:
        url: the URL of the original tenant's database.
        name: the name of the new database or schema.
        undo: a stack of cleanup callbacks. The function adds a callback that drops the new database
            or schema.
        options: the tenant's `DATABASE_OPTIONS`.

    Raises:
        DatabaseError: the server refuses to create the database or schema.
    """
    try:
        with _connect(url, options) as connection:
            schema = connection.exec_driver_sql("SELECT current_schema()").scalar()
            quoted = quote(connection, name)
    except DatabaseError:
        raise
    except Exception as error:
        raise DatabaseError(f"cannot use {_shown(url)}: {describe_error(error)}.") from error
    if schema == "public":
        kind, clone_url, drop = DATABASE, url.set(database=name), f"DROP DATABASE {quoted}"
    else:
        kind, clone_url = SCHEMA, with_schema(url, name)
        drop = f"DROP SCHEMA {quoted} CASCADE"
    if _is_left_by_clone(clone_url, kind, options):
        _execute(url, drop, options)
    _execute(url, f"CREATE {kind} {quoted}", options)
    undo.callback(_execute, url, drop, options)
    with _connect(clone_url, options) as connection:
        _create_mark(connection)
        _add_to_mark(connection, frozenset({(kind, name)}))
    return clone_url


def _is_left_by_clone(url: URL, kind: str, options: Mapping[str, Any]) -> bool:
    """Whether a killed `clone` command left the database or schema, and no process uses it."""
    try:
        with _connect(url, options) as connection:
            _check_mark_owner(connection, _shown(url))
            is_marked = any(marked == kind for marked, _ in _marked_objects(connection))
            return is_marked and bool(connection.exec_driver_sql(_TRY_LOCK).scalar())
    except Exception:  # noqa: BLE001 - the database or the mark table does not exist
        return False


def _execute(url: URL, statement: str, options: Mapping[str, Any]) -> None:
    """Run a statement in autocommit mode, because CREATE DATABASE fails in a transaction.

    Raises:
        DatabaseError: the server rejects the statement.
    """
    try:
        with _connect(url, options) as connection:
            connection.exec_driver_sql(statement)
    except Exception as error:
        text = f"{statement}: {describe_error(error)}; name an empty database with --database."
        raise DatabaseError(text) from error


def _connect(url: URL, options: Mapping[str, Any]) -> Connection:
    """Return an autocommit connection that has no idle timeout."""
    arguments = {"keepalives_idle": KEEPALIVE_S, "application_name": "tenantry restore"}
    arguments |= command_options(url, options)
    engine = create_engine(
        with_connect_timeout(url),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args=arguments,
    )
    connection = engine.connect()
    pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    if is_pooled(connection.connection.driver_connection, pid):
        connection.close()
        raise DatabaseError(f"{_shown(url)}: {POOLED}, with --database.")
    if (connection.dialect.server_version_info or (0,)) >= (14,):
        connection.exec_driver_sql("SET idle_session_timeout = 0")
    return connection


def _list_objects(connection: Connection) -> Objects:
    rows = connection.exec_driver_sql(_OBJECTS)
    return frozenset((kind, identity) for kind, identity in rows)


def _create_mark(connection: Connection) -> None:
    connection.exec_driver_sql(f"CREATE TABLE {MARK_TABLE} (kind text, name text)")


def _check_mark_owner(connection: Connection, shown: str) -> None:
    """Check that the mark table belongs to the current role.

    Raises:
        DatabaseError: another role owns the table, and could have inserted any names.
    """
    owner = connection.exec_driver_sql(_MARK_OWNER, (MARK_TABLE,)).scalar()
    if owner != connection.exec_driver_sql("SELECT current_user").scalar():
        text = f"{shown}: its table {MARK_TABLE!r} belongs to another role, {owner!r}"
        raise DatabaseError(f"{text}; drop the table, or name an empty database.")


def _marked_objects(connection: Connection) -> Objects:
    rows = connection.exec_driver_sql(f"SELECT kind, name FROM {MARK_TABLE}")  # noqa: S608
    return frozenset((kind, identity) for kind, identity in rows)


def _add_to_mark(connection: Connection, objects: Objects) -> None:
    """Add objects to the mark table in a single statement, because a statement is atomic."""
    statement = f"INSERT INTO {MARK_TABLE} SELECT * FROM unnest(%s::text[], %s::text[])"  # noqa: S608
    lists = ([kind for kind, _ in objects], [identity for _, identity in objects])
    connection.exec_driver_sql(statement, lists)


def _drop(connection: Connection, objects: Objects) -> None:
    """Drop those objects that the catalogue of the database still lists.

    The statements contain only identities that come from the catalogue, where the server has quoted
    them. The mark table and a capsule only choose among the identities in the catalogue.
    """
    for kind, identity in sorted(objects & _list_objects(connection)):
        # An identity can contain `%`, which must not start a parameter.
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
