"""Provides the database of an app, which endpoints import with `from tenantry import db`.

Importing SQLAlchemy takes 0.3 s, and endpoints without tables do not need SQLAlchemy. Therefore,
SQLAlchemy is imported on first use.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from flask import Flask, current_app, g
from pydantic import SecretStr

from tenantry.database.budget import ConnectionBudget
from tenantry.database.errors import DatabaseDownError
from tenantry.database.options import NO_OPTIONS
from tenantry.database.url import is_in_memory

if TYPE_CHECKING:
    from sqlalchemy import Engine, Pool
    from sqlalchemy.orm import Session

_EXTENSION = "tenantry.database"
"""Key in `app.extensions` of the `Database`, and key in `g` of the session."""

NoteQuery = Callable[[str, int], None]
"""A function that receives the tenant's name and the duration of a query in nanoseconds."""


class Database:
    """The database of an app. The engine is created on first use. Thread-safe.

    Args:
        owner: the tenant's name.
        url: the tenant's `DATABASE_URI`.
        budget: the connection budget of the process.
        note_query: a function that is called after each query.
        options: the tenant's `DATABASE_OPTIONS`.
    """

    def __init__(
        self,
        owner: str,
        url: SecretStr,
        budget: ConnectionBudget,
        note_query: NoteQuery | None = None,
        *,
        options: Mapping[str, Any] = NO_OPTIONS,
    ) -> None:
        self.options = options or NO_OPTIONS  # tenants must not share a mutable dict
        self.owner = owner
        self.url = url
        self._budget = budget
        self._note_query = note_query
        # The lock protects `_engine`, `_engines` and `_is_closed`.
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._engines: list[Engine] = []  # the engines of libraries
        self._is_closed = False

    @property
    def engine(self) -> "Engine":
        """The engine of the app, which is created on first use. The first query opens a connection.

        Raises:
            RuntimeError: the database is closed.
        """
        with self._lock:
            self._check_open()
            if self._engine is None:
                self._engine = self._make_engine(self.options)
            return self._engine

    def new_session(self) -> "Session":
        """Return a new session, which the caller must close.

        Raises:
            RuntimeError: the database is closed.
        """
        from sqlalchemy.orm import Session  # noqa: PLC0415 - takes 0.3 s

        return Session(self.engine, expire_on_commit=False)

    def new_pool(self, connect_args: Mapping[str, Any]) -> "Pool":
        """Return a pool of connections to the database, for the engine of a library.

        A database in memory has only one connection, and thus only one pool.

        Args:
            connect_args: the library's options for the driver. The tenant's options override them.
        """
        from sqlalchemy import make_url  # noqa: PLC0415 - takes 0.3 s

        url = make_url(self.url.get_secret_value())
        if url.get_backend_name() == "sqlite" and is_in_memory(url):
            return self.engine.pool
        own = self.options.get("connect_args", {})
        return self._make_engine({**self.options, "connect_args": {**connect_args, **own}}).pool

    def adopt(self, engine: "Engine") -> None:
        """Count the queries of a library's engine, translate its errors, and close it at the end.

        Raises:
            RuntimeError: the database is closed.
        """
        from tenantry.database.engine import observe_engine  # noqa: PLC0415 - takes 0.3 s

        observe_engine(self.owner, engine, self._query_noter())
        with self._lock:
            self._check_open()
            self._engines.append(engine)

    def close(self) -> None:
        """Close all idle connections, and each other connection as soon as it is returned."""
        with self._lock:
            self._is_closed = True
            engines = [*self._engines, *filter(None, [self._engine])]
            self._engine = None
            self._engines.clear()
        if engines:
            from tenantry.database.engine import close_engine  # noqa: PLC0415 - takes 0.3 s

            for engine in engines:
                close_engine(engine)

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError(f"the database of tenant {self.owner!r} is closed")

    def _make_engine(self, options: Mapping[str, Any]) -> "Engine":
        from tenantry.database.engine import make_engine  # noqa: PLC0415 - takes 0.3 s

        url = self.url.get_secret_value()
        return make_engine(self.owner, url, self._budget, self._query_noter(), options=options)

    def _query_noter(self) -> Callable[[int], None] | None:
        return self._note_query and partial(self._note_query, self.owner)


def with_plugin(database: Database, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return options of `create_engine` that make the engine of a library use a tenant's database.

    Args:
        database: the tenant's database.
        options: the options of the library.
    """
    from tenantry.database import engine_plugin  # noqa: PLC0415 - takes 0.3 s

    options = options or {}
    plugins = [*options.get("plugins", ()), engine_plugin.NAME]
    return {**options, "plugins": plugins, engine_plugin.DATABASE: database}


def add_database(app: Flask, database: Database) -> None:
    """Make a database the database of an app. Several apps of a tenant can share a database."""
    app.extensions[_EXTENSION] = database
    app.teardown_appcontext(_close_session)


def database_of(app: Flask) -> Database:
    """Return the `Database` of an app."""
    database: Database = app.extensions[_EXTENSION]
    return database


def owner_of_database(app: Flask) -> str | None:
    """Return the name of the tenant to which an app's database belongs, or None without one."""
    database: Database | None = app.extensions.get(_EXTENSION)
    return None if database is None else database.owner


def close_database(app: Flask) -> None:
    """Close the database of an app. Idempotent."""
    database = app.extensions.pop(_EXTENSION, None)
    if database is not None:
        database.close()


def _close_session(_: BaseException | None) -> None:
    session = g.pop(_EXTENSION, None)
    if session is not None:
        # If the server dies before the rollback, nothing of the response depends on the rollback.
        with suppress(DatabaseDownError):
            session.close()


class CurrentDatabase:
    """The database of the current app. Outside an app context, any access raises an error."""

    @property
    def engine(self) -> "Engine":
        """The engine of the current app, which is created on first use."""
        return database_of(current_app).engine

    @property
    def session(self) -> "Session":
        """The session of the current app context. The end of the context rolls back the session."""
        session: Session | None = g.get(_EXTENSION)
        if session is None:
            session = database_of(current_app).new_session()
            setattr(g, _EXTENSION, session)
        return session


db = CurrentDatabase()
"""The database of the current app."""
