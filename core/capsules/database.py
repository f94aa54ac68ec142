"""The database that a capsule is restored into: empty before, and empty again after a failure.

SQLite in a file, and PostgreSQL through psycopg.
"""

from pathlib import Path

from sqlalchemy import URL, Connection, NullPool, create_engine

from core.errors import TenantryError
from core.revisions import one_line, with_timeout

_RELATIONS = """
    SELECT CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
                        WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, quote_ident(relname)
    FROM pg_class WHERE relnamespace = quote_ident(current_schema())::regnamespace
      AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
    ORDER BY relkind = 'S'
"""
_TYPES = """
    SELECT 'TYPE', quote_ident(typname) FROM pg_type
    WHERE typnamespace = quote_ident(current_schema())::regnamespace AND typtype IN ('d', 'e')
"""
_ROUTINES = """
    SELECT 'ROUTINE', oid::regprocedure::text FROM pg_proc
    WHERE pronamespace = quote_ident(current_schema())::regnamespace
      AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')
"""


class DatabaseError(TenantryError):
    """A database cannot be made, or is not what a restored tenant needs."""


def is_server(url: URL) -> bool:
    """Whether the database is a server's, not a file."""
    return url.get_backend_name() != "sqlite"


def check_empty(url: URL) -> None:
    """Check that a database can be used, and holds nothing.

    Raises:
        DatabaseError: it holds something, is not there, or is of an engine that is not known here.
    """
    shown = url.render_as_string(hide_password=True)
    if not is_server(url):
        path = Path((url.database or "").removeprefix("file:"))
        if not url.database or ":memory:" in url.database or url.query:
            raise DatabaseError(f"{shown}: name a file, and nothing else, for a SQLite database.")
        if path.exists():
            raise DatabaseError(f"{path} is there already; name a new file.")
        if not path.parent.is_dir():
            raise DatabaseError(f"{path.parent} is no folder; make it, or name a file elsewhere.")
        return
    if url.drivername != "postgresql+psycopg":
        raise DatabaseError(f"{shown}: use sqlite or postgresql+psycopg.")
    try:
        with _connected(url) as connection:
            schema = connection.exec_driver_sql("SELECT current_schema()").scalar()
            found = connection.exec_driver_sql(_RELATIONS).all() if schema else []
    except Exception as error:
        remedy = "make it with CREATE DATABASE, or mend the URL"
        raise DatabaseError(f"{shown} cannot be used: {one_line(error)}; {remedy}.") from error
    if schema is None:
        raise DatabaseError(f"{shown}: its schema is not there; run CREATE SCHEMA first.")
    if found:
        names = ", ".join(name for _, name in found[:3])
        raise DatabaseError(f"{shown} is not empty: it holds {names}; name an empty one.")


def empty(url: URL) -> None:
    """Drop all that is in a database of a server, which was empty before.

    Raises:
        DatabaseError: something is left; the text says what to do.
    """
    try:
        with _connected(url) as connection, connection.begin():
            for query in (_RELATIONS, _TYPES, _ROUTINES):
                for kind, name in connection.exec_driver_sql(query).all():
                    connection.exec_driver_sql(f"DROP {kind} IF EXISTS {name} CASCADE")
    except Exception as error:
        shown = url.render_as_string(hide_password=True)
        text = f"{shown} could not be emptied again: {one_line(error)}; drop it yourself."
        raise DatabaseError(text) from error


def execute(url: URL, statement: str) -> None:
    """Run one statement by itself, as CREATE DATABASE wants it.

    Raises:
        DatabaseError: the server refuses it.
    """
    try:
        with _connected(url) as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.exec_driver_sql(statement)
    except Exception as error:
        text = f"{statement}: {one_line(error)}; name an empty database with --database."
        raise DatabaseError(text) from error


def _connected(url: URL) -> Connection:
    return create_engine(with_timeout(url), poolclass=NullPool).connect()
