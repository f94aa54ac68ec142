"""Which thread uses which connection of an engine, so that what it waits for can be cancelled.

Knows drivers by their methods only. What a request has given back is never cancelled: it may be
another request's by now.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

CANCEL_TIMEOUT_S = 2.0
"""How long a server may take to hear that it shall stop: a connection of its own is made for it."""

_logger = logging.getLogger(__name__)


class Entry(Protocol):
    """A place in a pool."""

    @property
    def dbapi_connection(self) -> Any:
        """The connection that is in it now."""
        ...


class Checkouts:
    """The connections of one engine that are in use. Thread-safe."""

    def __init__(self) -> None:
        self._uses: dict[Entry, _Use] = {}  # its own methods are atomic

    def take(self, entry: Entry) -> None:
        """Note that this thread has got a connection, or is about to."""
        self._uses[entry] = _Use(entry)

    def give_back(self, entry: Entry) -> float | None:
        """Note that it was given back, or let go; return since when it was used, if it was."""
        use = self._uses.pop(entry, None)
        if use is None:
            return None
        use.end()
        return use.began_at

    def of(self, thread: int) -> list[Callable[[], None]]:
        """Return what cancels each use of a thread: callable from any thread, later too."""
        return [use.cancel for use in list(self._uses.values()) if use.thread == thread]


class _Use:
    __slots__ = ("_entry", "_lock", "began_at", "thread")

    def __init__(self, entry: Entry) -> None:
        self.thread = threading.get_ident()
        self.began_at = time.monotonic()
        self._entry: Entry | None = entry
        self._lock = threading.Lock()  # the connection is not given back while it is cancelled

    def end(self) -> None:
        with self._lock:
            self._entry = None

    def cancel(self) -> None:
        with self._lock:
            connection: Any = None if self._entry is None else self._entry.dbapi_connection
            if connection is None:
                return
            try:
                if hasattr(connection, "interrupt"):  # SQLite
                    connection.interrupt()
                elif hasattr(connection, "cancel_safe"):  # psycopg
                    connection.cancel_safe(timeout=CANCEL_TIMEOUT_S)
            except Exception as error:  # noqa: BLE001 - whatever a driver raises
                _logger.warning("query.not_cancelled", extra={"reason": str(error)})
