"""Tells why a tenant's database cannot be used, by connecting to it once; for commands.

Makes nothing: a SQLite file that is not there yet is good if it can be made.
"""

import os
from pathlib import Path

from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from core.database_url import SCHEMA_QUERY, wrong_schema
from core.engine import connect_arguments, is_in_memory


def why_unreachable(owner: str, url_text: str) -> str | None:
    """Connect once; return why that fails, in one line without the password, or None.

    Takes up to 2 s per address of a server that does not answer.
    """
    url = make_url(url_text)
    if url.get_backend_name() == "sqlite":
        if is_in_memory(url):
            return None
        path = Path(str(url.database).removeprefix("file:"))
        if not path.exists():
            return _why_not_made(path)
    return _why_not_connected(owner, url)


def _why_not_connected(owner: str, url: URL) -> str | None:
    engine = create_engine(
        url, poolclass=NullPool, connect_args=connect_arguments(owner, url), hide_parameters=True
    )
    queries = {"sqlite": "PRAGMA schema_version", "postgresql": SCHEMA_QUERY}
    backend = url.get_backend_name()
    try:
        with engine.connect() as connection:
            found = connection.exec_driver_sql(queries.get(backend, "SELECT 1")).scalar()
    except Exception as error:  # noqa: BLE001 - whatever a driver raises for what its URL says
        cause = getattr(error, "orig", None) if isinstance(error, SQLAlchemyError) else error
        text = " ".join(str(cause or error).split()) or type(error).__name__
        return text.replace(str(url.password), "***") if url.password else text
    return wrong_schema(url, found) if backend == "postgresql" else None


def _why_not_made(path: Path) -> str | None:
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"there is no folder {folder} for its file; make it"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"its file cannot be made in {folder}, which this user may not write"
    if path.with_name(f"{path.name}.made").exists():
        return f"its file {path} is gone; restore it, or delete {path.name}.made too"
    return None
