"""Makes the engine of one tenant: its pool in the process's budget, its breaker, its options.

The only room, with `pool`, that imports SQLAlchemy at its top; import it when an engine is needed.
"""

import logging
from collections.abc import Callable
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from core.breaker import Breaker
from core.connections import ConnectionBudget
from core.database_down import DatabaseDownError
from core.pool import BudgetPool

BUSY_TIMEOUT_S = 5.0
"""How long a write to SQLite waits for another one to end."""

CONNECT_TIMEOUT_S = 2
"""How long a connection may take to be made: libpq takes no less."""

KEEPALIVES = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""What libpq sets on its sockets, in seconds and (the last) milliseconds: a host that fell silent
is noticed in half a minute, not after the system's two hours."""

_logger = logging.getLogger(__name__)


def make_engine(owner: str, url_text: str, budget: ConnectionBudget) -> Engine:
    """Return an engine that has connected to nothing yet; `close_engine` ends it."""
    url = make_url(url_text)
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(owner, url, budget)
    return create_engine(
        url,
        poolclass=BudgetPool,
        budget=budget,
        owner=owner,
        guard=ServerGuard(owner),
        connect_args=_connect_args(owner, url),
    )


def close_engine(engine: Engine) -> None:
    """Close what is idle, and each connection that comes back later. Idempotent."""
    if isinstance(engine.pool, BudgetPool):
        engine.pool.retire()
    else:
        engine.dispose()


class ServerGuard:
    """Stands before connections to a database server: refuses at once while it is down."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._breaker = Breaker()

    def check(self) -> None:
        """Refuse while the server is known to be down.

        Raises:
            DatabaseDownError: it is.
        """
        if self._breaker.is_open and not self._breaker.take_probe():
            raise DatabaseDownError(self._breaker.retry_after_s)

    def open(self, connect: Callable[[], Any]) -> Any:
        """Connect, and note how that went.

        Raises:
            DatabaseDownError: it failed.
        """
        try:
            connection = connect()
        except Exception as error:
            if self._breaker.fail():
                _logger.error("database.down", extra={"tenant": self._owner, "reason": str(error)})
            raise DatabaseDownError(self._breaker.retry_after_s) from error
        if self._breaker.succeed():
            _logger.warning("database.back", extra={"tenant": self._owner})
        return connection


class FileGuard:
    """Stands before connections to a SQLite file."""

    def check(self) -> None:
        """Let everybody pass."""

    def open(self, connect: Callable[[], Any]) -> Any:
        """Open it."""
        return connect()


def _connect_args(owner: str, url: URL) -> dict[str, Any]:
    if url.get_driver_name() != "psycopg":
        return {}
    defaults = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": f"tenantry {owner}",
        **KEEPALIVES,
    }
    return {key: value for key, value in defaults.items() if key not in url.query}


def _sqlite_engine(owner: str, url: URL, budget: ConnectionBudget) -> Engine:
    in_memory = url.database in (None, "", ":memory:") or url.query.get("mode") == "memory"
    if in_memory:
        engine = create_engine(
            url,
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=0,
            pool_timeout=budget.wait_s,
            connect_args={"check_same_thread": False},
        )
    else:
        engine = create_engine(
            url,
            poolclass=BudgetPool,
            budget=budget,
            owner=owner,
            guard=FileGuard(),
            connect_args={} if "timeout" in url.query else {"timeout": BUSY_TIMEOUT_S},
        )
    event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")  # with WAL, safe but for the last commits
    cursor.close()
