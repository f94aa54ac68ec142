"""An app's own database, as its endpoints see it: `from core.database import db`.

SQLAlchemy is imported when a database is used for the first time: it costs 0.3 s of a start, and a
tenant whose endpoints have no tables never needs it.
"""

import threading
from typing import TYPE_CHECKING, cast

from flask import Flask, current_app, g
from werkzeug.local import LocalProxy

from core.connections import ConnectionBudget
from core.database_down import DatabaseDownError

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

__all__ = ["Database", "DatabaseDownError", "db", "open_database"]

_EXTENSION = "tenantry.database"


class Database:
    """An app's database: an engine from the first use on, a session per app context.

    Thread-safe; a session is its context's own. Closed with its app; it must not be used then.

    Args:
        owner: the tenant's name.
        url: the tenant's `DATABASE_URI`.
        budget: where its connections count.
    """

    __slots__ = ("_budget", "_engine", "_is_closed", "_lock", "_url", "owner")

    def __init__(self, owner: str, url: str, budget: ConnectionBudget) -> None:
        self.owner = owner
        self._url = url
        self._budget = budget
        self._lock = threading.Lock()  # protects the two below
        self._engine: Engine | None = None
        self._is_closed = False

    @property
    def engine(self) -> "Engine":
        """The engine, made on first use; it connects by itself.

        Raises:
            RuntimeError: the database is closed.
        """
        engine = self._engine
        if engine is None:
            from core.engine import make_engine  # noqa: PLC0415 - see above

            with self._lock:
                if self._is_closed:
                    raise RuntimeError(f"the database of tenant {self.owner!r} is closed")
                engine = self._engine = self._engine or make_engine(
                    self.owner, self._url, self._budget
                )
        return engine

    @property
    def session(self) -> "Session":
        """The session of this app context; rolled back and closed at the context's end."""
        session = g.get(_EXTENSION)
        if session is None:
            from sqlalchemy.orm import Session  # noqa: PLC0415 - see above

            session = Session(self.engine, expire_on_commit=False)
            setattr(g, _EXTENSION, session)
        return cast("Session", session)

    def close(self) -> None:
        """Close its connections; those in use, when they come back. Idempotent."""
        with self._lock:
            self._is_closed = True
            engine, self._engine = self._engine, None
        if engine is not None:
            from core.engine import close_engine  # noqa: PLC0415 - see above

            close_engine(engine)


def open_database(app: Flask, owner: str, url: str, budget: ConnectionBudget) -> Database:
    """Give an app its database, and end its sessions with their contexts; nothing connects yet."""
    database = app.extensions[_EXTENSION] = Database(owner, url, budget)
    app.teardown_appcontext(_close_session)
    return database


def database_of(app: Flask) -> Database:
    """Return an app's database."""
    return cast("Database", app.extensions[_EXTENSION])


def close_database(app: Flask) -> None:
    """Close an app's database. Idempotent."""
    database = app.extensions.pop(_EXTENSION, None)
    if database is not None:
        database.close()


def _close_session(_: BaseException | None) -> None:
    session = g.pop(_EXTENSION, None)
    if session is not None:
        session.close()


def _current() -> Database:
    return database_of(current_app)


db = cast("Database", LocalProxy(_current))
"""The database of the current app."""
