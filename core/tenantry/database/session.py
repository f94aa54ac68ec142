"""An app's own database, as its endpoints see it: `from tenantry.database.session import db`.

SQLAlchemy is imported when a database is used for the first time: it costs 0.3 s of a start, and a
tenant whose endpoints have no tables never needs it.
"""

import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, cast

from flask import Flask
from flask.globals import app_ctx
from pydantic import SecretStr
from werkzeug.local import LocalProxy

from tenantry.database.budget import ConnectionBudget
from tenantry.database.checkouts import Checkouts
from tenantry.database.errors import DatabaseDownError

if TYPE_CHECKING:
    from flask.ctx import AppContext
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

__all__ = ["CurrentDatabase", "Database", "DatabaseDownError", "db", "open_database"]

_EXTENSION = "tenantry.database"

# Returns the current app context itself: each word through its proxy costs 2 µs.
_context = cast("LocalProxy[AppContext]", app_ctx)._get_current_object  # noqa: SLF001 - documented

NoteQuery = Callable[[str, int], None]


class Database:
    """An app's database: an engine from the first use on. Thread-safe.

    Closed with its app; it must not be used then.

    Args:
        owner: the tenant's name.
        url: the tenant's `DATABASE_URI`.
        budget: where its connections count.
        note_query: called after each query with the owner and the nanoseconds that it took.
    """

    __slots__ = (
        "_budget", "_engine", "_is_closed", "_lock", "_note_query", "_sessions", "_url", "_uses",
        "owner",
    )  # fmt: skip

    def __init__(
        self,
        owner: str,
        url: SecretStr,
        budget: ConnectionBudget,
        note_query: NoteQuery | None = None,
    ) -> None:
        self.owner = owner
        self._note_query = note_query
        self._url = url
        self._budget = budget
        self._lock = threading.Lock()  # protects the four below
        self._engine: Engine | None = None
        self._uses: Checkouts | None = None
        self._sessions: Callable[[], Session] | None = None
        self._is_closed = False

    @property
    def engine(self) -> "Engine":
        """The engine, made on first use; it connects by itself.

        Raises:
            RuntimeError: the database is closed.
        """
        return self._engine or self._open()[0]

    def new_session(self) -> "Session":
        """Return a session, which its caller closes.

        Raises:
            RuntimeError: the database is closed.
        """
        return (self._sessions or self._open()[1])()

    def _open(self) -> "tuple[Engine, Callable[[], Session]]":
        from sqlalchemy.orm import Session  # noqa: PLC0415 - see above

        from tenantry.database.engine import make_engine  # noqa: PLC0415

        with self._lock:
            if self._is_closed:
                raise RuntimeError(f"the database of tenant {self.owner!r} is closed")
            if self._engine is None or self._sessions is None:
                note = self._note_query and partial(self._note_query, self.owner)
                self._uses = Checkouts()
                self._engine = make_engine(
                    self.owner, self._url.get_secret_value(), self._budget, self._uses, note
                )
                self._sessions = partial(Session, self._engine, expire_on_commit=False)
            return self._engine, self._sessions

    def uses_of(self, thread: int) -> Iterable[Callable[[], None]]:
        """Return what cancels each query that a thread waits for; callable from any thread."""
        return () if self._uses is None else self._uses.of(thread)

    def close(self) -> None:
        """Close its connections; those in use, when they come back. Idempotent."""
        with self._lock:
            self._is_closed = True
            engine, self._engine, self._sessions = self._engine, None, None
        if engine is not None:
            from tenantry.database.engine import close_engine  # noqa: PLC0415 - see above

            close_engine(engine)


def open_database(
    app: Flask,
    owner: str,
    url: SecretStr,
    budget: ConnectionBudget,
    note_query: NoteQuery | None = None,
) -> Database:
    """Give an app its database, and end its sessions with their contexts; nothing connects yet."""
    database = app.extensions[_EXTENSION] = Database(owner, url, budget, note_query)
    app.teardown_appcontext(_close_session)
    return database


def database_of(app: Flask) -> Database:
    """Return an app's database."""
    database: Database = app.extensions[_EXTENSION]
    return database


def close_database(app: Flask) -> None:
    """Close an app's database. Idempotent."""
    database = app.extensions.pop(_EXTENSION, None)
    if database is not None:
        database.close()


def _close_session(_: BaseException | None) -> None:
    session = _context().g.pop(_EXTENSION, None)
    if session is not None:
        session.close()


class CurrentDatabase:
    """The database of whichever app is current, on any thread; outside of a context it raises."""

    __slots__ = ()

    @property
    def engine(self) -> "Engine":
        """The engine of the current app, made on first use; it connects by itself."""
        return database_of(_context().app).engine

    @property
    def session(self) -> "Session":
        """The session of this app context; rolled back and closed at the context's end."""
        context = _context()
        kept = context.g
        session: Session | None = kept.get(_EXTENSION)
        if session is None:
            session = database_of(context.app).new_session()
            setattr(kept, _EXTENSION, session)
        return session


db = CurrentDatabase()
"""The database of the current app."""
