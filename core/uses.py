"""Which thread uses which connection of an engine, so that what it waits for can be cancelled.

Knows drivers by their methods only. What a request has given back is never cancelled: it may be
another request's by now.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

CANCEL_TIMEOUT_S = 2.0
"""How long a server may take to hear that it shall stop: a connection of its own is made for it."""

_logger = logging.getLogger(__name__)


class Uses:
    """The connections of one engine that are in use. Thread-safe."""

    def __init__(self) -> None:
        self._uses: dict[int, _Use] = {}  # by their record; its own methods are atomic

    def take(self, connection: Any, record: object, _proxy: object) -> None:
        """Note that this thread has got a connection; SQLAlchemy's event `checkout`."""
        self._uses[id(record)] = _Use(connection)

    def give_back(self, _connection: Any, record: object) -> None:
        """Note that it was given back, or let go; SQLAlchemy's events `checkin` and `detach`."""
        use = self._uses.pop(id(record), None)
        if use is not None:
            use.end()

    def of(self, thread: int) -> list[Callable[[], None]]:
        """Return what cancels each use of a thread: callable from any thread, later too."""
        return [use.cancel for use in list(self._uses.values()) if use.thread == thread]


class _Use:
    __slots__ = ("_connection", "_lock", "thread")

    def __init__(self, connection: Any) -> None:
        self.thread = threading.get_ident()
        self._connection = connection
        self._lock = threading.Lock()  # the connection is not given back while it is cancelled

    def end(self) -> None:
        with self._lock:
            self._connection = None

    def cancel(self) -> None:
        with self._lock:
            connection = self._connection
            if connection is None:
                return
            try:
                if hasattr(connection, "interrupt"):  # SQLite
                    connection.interrupt()
                elif hasattr(connection, "cancel_safe"):  # psycopg
                    connection.cancel_safe(timeout=CANCEL_TIMEOUT_S)
            except Exception as error:  # noqa: BLE001 - whatever a driver raises
                _logger.warning("query.not_cancelled", extra={"reason": str(error)})
