"""Reads the revisions of a database from Alembic's table `alembic_version`.

Reading the revisions changes nothing, and does not create a missing SQLite file. SQLAlchemy is
imported on first use, so that a host can start without it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenantry.database.options import NO_OPTIONS, command_options
from tenantry.database.url import schema_problem
from tenantry.errors import TenantryError, one_line

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.engine import URL

VERSIONS_QUERY = "SELECT version_num FROM alembic_version"

CONNECT_TIMEOUT_S = 10
"""Timeout for connecting to a PostgreSQL server, unless the URL sets a timeout."""

_POSTGRES_TABLE_QUERY = "SELECT current_schema(), to_regclass('alembic_version')::text"

_MISSING_TABLE_STATES = ("42P01", "42S02")  # SQLSTATE of PostgreSQL, and of other engines
_MISSING_COLUMN_STATES = ("42703", "42S22")
_MISSING_COLUMN_TEXTS = ("no such column", "has no column named")  # SQLite has no SQLSTATE


class SchemaError(TenantryError):
    """A PostgreSQL connection does not use the schema that the database URL names."""


class LostDatabaseError(TenantryError):
    """A SQLite file existed, and is missing now. Creating a new file would hide the loss."""


def read_versions(url: "URL", options: Mapping[str, Any] = NO_OPTIONS) -> frozenset[str]:
    """Read the revisions of a database directly with the database driver, without SQLAlchemy.

    A new SQLAlchemy engine sends additional queries when it connects. For a fleet run, which reads
    every database, connecting is the main cost.

    Raises:
        LostDatabaseError: the SQLite file existed and is missing now.
        SchemaError: the connection uses a schema other than the one in the database URL.
        Exception: the database cannot be read. The type of the exception depends on the driver.
    """
    if url.get_backend_name() == "sqlite" and not sqlite_file_exists(url):
        check_file_not_lost(url)
        return frozenset()
    dialect = url.get_dialect()()
    args, of_url = dialect.create_connect_args(with_connect_timeout(url))
    arguments = dict(of_url) | command_options(url, options)
    connection = dialect.import_dbapi().connect(*args, **arguments)
    try:
        cursor = connection.cursor()

        def fetch(query: str) -> Sequence[Any]:
            cursor.execute(query)
            rows: Sequence[Any] = cursor.fetchall()
            return rows

        return _read(fetch, url) or frozenset()
    finally:
        connection.close()


def read_versions_on(connection: "Connection") -> frozenset[str]:
    """Read the revisions of a database with an open connection, in a new transaction.

    Raises:
        SchemaError: the connection uses a schema other than the one in the database URL.
        Exception: the database cannot be read. The type of the exception depends on the driver.
    """
    return read_version_table(connection) or frozenset()


def read_version_table(connection: "Connection") -> frozenset[str] | None:
    """Return the revisions of a database, or None if the table `alembic_version` does not exist."""
    return _read(lambda query: connection.exec_driver_sql(query).all(), connection.engine.url)


def _read(fetch: Callable[[str], Sequence[Any]], url: "URL") -> frozenset[str] | None:
    if url.get_backend_name() == "postgresql":
        # A query of a missing table would abort the transaction.
        schema, table = fetch(_POSTGRES_TABLE_QUERY)[0]
        if text := schema_problem(url, schema):
            raise SchemaError(f"{text}.")
        if table is None:
            return None
    try:
        return frozenset(row[0] for row in fetch(VERSIONS_QUERY))
    except Exception as error:
        if not _is_missing_table(getattr(error, "orig", None) or error):
            raise
        return None


def is_missing_table_or_column(error: BaseException) -> bool:
    """Whether the exception of a driver means that a table or a column does not exist."""
    if _is_missing_table(error) or getattr(error, "sqlstate", None) in _MISSING_COLUMN_STATES:
        return True
    return any(text in str(error) for text in _MISSING_COLUMN_TEXTS)


def _is_missing_table(error: BaseException) -> bool:
    state = getattr(error, "sqlstate", None)
    return state in _MISSING_TABLE_STATES or "no such table" in str(error)


def describe_error(error: BaseException) -> str:
    """Return the type and the text of an exception on one line, without SQLAlchemy's additions.

    Final punctuation is removed, because advice for the operator follows the text. Messages of
    libpq can end with a question mark.
    """
    cause = getattr(error, "orig", None) or error
    return one_line(cause, with_type=True).rstrip(".?")


def describe_unreachable(error: BaseException) -> str:
    """Describe why a database cannot be read, and what to do about it."""
    text = f"cannot read the database: {describe_error(error)}"
    if isinstance(error, TenantryError):  # the text of the error already says what to do
        return f"{text}."
    return f"{text}; start the database, or correct 'DATABASE_URI'."


def sqlite_file_exists(url: "URL") -> bool:
    """Whether the file of a SQLite URL exists. A database in memory has no file."""
    path = _sqlite_path(url)
    return path is not None and path.is_file()


def check_file_not_lost(url: "URL") -> None:
    """Raise an error if a SQLite file is missing although its marker file exists.

    Raises:
        LostDatabaseError: the marker exists, but the SQLite file is missing.
    """
    path = _sqlite_path(url)
    if path is None or path.exists():
        return
    marker = path.with_name(f"{path.name}.made")
    if marker.exists():
        raise LostDatabaseError(f"its file {path} is gone; restore it, or delete {marker.name} too")


def _sqlite_path(url: "URL") -> Path | None:
    path = (url.database or "").removeprefix("file:")
    return Path(path) if path else None


def with_connect_timeout(url: "URL") -> "URL":
    """Add a connection timeout to a psycopg URL that has none."""
    if url.drivername == "postgresql+psycopg" and "connect_timeout" not in url.query:
        return url.update_query_dict({"connect_timeout": str(CONNECT_TIMEOUT_S)})
    return url
