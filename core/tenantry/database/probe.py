"""Tells why a tenant's database cannot be used, and which one it is, by connecting to it once.

For commands. Makes nothing: a SQLite file that is not there yet is good if it can be made.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, Connection, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from tenantry.database.engine import connect_arguments, is_in_memory
from tenantry.database.url import SCHEMA_QUERY, wrong_schema

_PLACE = """
SELECT pg_postmaster_start_time()::text, oid::text, current_schema()
FROM pg_database WHERE datname = current_database()
"""
"""What tells a database of PostgreSQL from every other, whatever name its server was asked by; the
time, because a server that was copied has all else from the other one."""


@dataclass(frozen=True)
class Found:
    """What a connection showed."""

    why_not: str | None = None
    """Why the database cannot be used; None if it can."""
    place: tuple[str, ...] | None = None
    """What its server says which one it is: two that say the same are one. None where none does."""


def find_database(owner: str, url_text: str) -> Found:
    """Connect once; return why that fails, in one line without the password, or what is there.

    Takes up to 2 s per address of a server that does not answer.
    """
    url = make_url(url_text)
    if url.get_backend_name() == "sqlite":
        if is_in_memory(url):
            return Found()
        path = Path(str(url.database).removeprefix("file:"))
        if not path.exists():
            return Found(_why_not_made(path))
    return _connect(owner, url)


def _connect(owner: str, url: URL) -> Found:
    engine = create_engine(
        url, poolclass=NullPool, connect_args=connect_arguments(owner, url), hide_parameters=True
    )
    queries = {"sqlite": "PRAGMA schema_version", "postgresql": SCHEMA_QUERY}
    backend = url.get_backend_name()
    try:
        with engine.connect() as connection:
            found = connection.exec_driver_sql(queries.get(backend, "SELECT 1")).scalar()
            if backend == "postgresql":
                return Found(wrong_schema(url, found), _place(connection))
    except Exception as error:  # noqa: BLE001 - whatever a driver raises for what its URL says
        cause = getattr(error, "orig", None) if isinstance(error, SQLAlchemyError) else error
        text = " ".join(str(cause or error).split()) or type(error).__name__
        return Found(text.replace(str(url.password), "***") if url.password else text)
    return Found()


def _place(connection: Connection) -> tuple[str, ...] | None:
    """Return which database it is; None where something like PostgreSQL does not know."""
    try:
        return tuple(map(str, connection.exec_driver_sql(_PLACE).one()))
    except SQLAlchemyError:
        return None


def _why_not_made(path: Path) -> str | None:
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"there is no folder {folder} for its file; make it"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"its file cannot be made in {folder}, which this user may not write"
    if path.with_name(f"{path.name}.made").exists():
        return f"its file {path} is gone; restore it, or delete {path.name}.made too"
    return None
