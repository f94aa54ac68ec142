"""Connects to a database once, so that commands can report why it does not work.

A probe creates no file. A missing SQLite file is not a problem if the file can be created.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from tenantry.database.engine import connect_arguments
from tenantry.database.options import NO_OPTIONS, engine_options
from tenantry.database.url import SCHEMA_QUERY, is_in_memory, schema_problem
from tenantry.errors import one_line

_IDENTITY_QUERY = """
SELECT pg_postmaster_start_time()::text, oid::text, current_schema()
FROM pg_database WHERE datname = current_database()
"""
"""A query that identifies a PostgreSQL database, independently of its host name.

The start time of a server distinguishes the server from a copy of its data.
"""


@dataclass(frozen=True)
class DatabaseProbe:
    """The result of a probe."""

    problem: str | None = None
    """Why the database does not work, on one line and without the password; None if it works."""
    server_identity: tuple[str, ...] | None = None
    """The identity of the database, which is the same for all of its URLs; None if unknown."""


def probe_database(
    owner: str, url_text: str, options: Mapping[str, Any] = NO_OPTIONS
) -> DatabaseProbe:
    """Connect to a database once. A silent server takes 2 s for each of its addresses."""
    url = make_url(url_text)
    if url.get_backend_name() == "sqlite":
        if is_in_memory(url):
            return DatabaseProbe()
        path = Path(str(url.database).removeprefix("file:"))
        if not path.exists():
            return DatabaseProbe(_creation_problem(path))
    return _connect(owner, url, options)


def _connect(owner: str, url: URL, options: Mapping[str, Any]) -> DatabaseProbe:
    engine = create_engine(
        url,
        poolclass=NullPool,
        connect_args=connect_arguments(owner, url, options),
        **engine_options(url, options) | {"hide_parameters": True},
    )
    queries = {"sqlite": "PRAGMA schema_version", "postgresql": SCHEMA_QUERY}
    backend = url.get_backend_name()
    try:
        with engine.connect() as connection:
            answer = connection.exec_driver_sql(queries.get(backend, "SELECT 1")).scalar()
            if backend == "postgresql":
                return DatabaseProbe(schema_problem(url, answer), _server_identity(connection))
    except Exception as error:  # noqa: BLE001 - drivers raise their own exceptions for bad options
        cause = getattr(error, "orig", None) if isinstance(error, SQLAlchemyError) else error
        text = one_line(cause or error)
        text = text.replace(str(url.password), "***") if url.password else text
        return DatabaseProbe(f"{text.rstrip('.?')}; start the database, or correct the URL")
    return DatabaseProbe()


def _server_identity(connection: Connection) -> tuple[str, ...] | None:
    """Return the identity of the database, or None if the server does not report an identity."""
    try:
        return tuple(map(str, connection.exec_driver_sql(_IDENTITY_QUERY).one()))
    except SQLAlchemyError:
        return None


def _creation_problem(path: Path) -> str | None:
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"the folder {folder} for its file does not exist; create the folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"this user cannot create its file in {folder}; change the permissions of the folder"
    if path.with_name(f"{path.name}.made").exists():
        return f"its file {path} is gone; restore it, or also delete {path.name}.made"
    return None
