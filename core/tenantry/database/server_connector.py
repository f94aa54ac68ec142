"""Opens, checks and closes connections to a server; fails fast while the server is down."""

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy.pool import ConnectionPoolEntry

from tenantry.database.circuit_breaker import SLOW_S, CircuitBreaker
from tenantry.database.errors import DatabaseDownError
from tenantry.errors import one_line

CLOSE_TIMEOUT_S = 2.0
"""Time limit for waiting until the server process of a closed connection ends. The end takes about
2 ms, or 0.3 s on a busy machine. A frozen server makes only one request wait for the time limit;
later requests do not wait until the server answers again."""

FRESH_S = 0.5
"""Time after a check-in in which a connection is used without a check of its socket. The check
releases the interpreter lock, and on a busy worker, reacquiring the interpreter lock takes longer
than the query. A server restart and an idle timeout take longer than the time without a check. If
the server ends a connection within the time, one request gets 503."""

_logger = logging.getLogger(__name__)


class ServerConnector:
    """Connections to one tenant's database server. Opening fails at once while the server is down.

    While the server is down, a request may start a probe: a thread that connects once. Requests do
    not wait for the probe.

    Args:
        owner: the tenant's name.
        password: the database password, which log lines mask.
    """

    def __init__(self, owner: str, password: str = "") -> None:
        self.probe: Callable[[], None] = lambda: None
        """Opens one connection. The function that makes the engine sets the attribute."""
        self._owner = owner
        self._password = password
        self._breaker = CircuitBreaker()
        self._is_silent = False  # The server did not respond to the last attempt in time.
        self._thread = threading.local()  # `is_probing`: whether the thread is the probe

    def check_available(self, *, must_open: bool) -> None:
        """Raise if the server is known to be down.

        A server that refuses new connections may still serve open connections. A silent server
        serves no connection.

        Raises:
            DatabaseDownError: the server is known to be down.
        """
        pause_s = self._breaker.pause_s
        if pause_s is None or self._is_probe_thread():
            return
        self._start_probe_if_due()
        if must_open or self._is_silent:
            raise DatabaseDownError(pause_s)

    def is_usable(self, record: ConnectionPoolEntry, idle_s: float) -> bool:
        """Return False if the server has sent a last message or EOF on an idle connection.

        A connection that was in use a moment ago is not checked.
        """
        if idle_s < FRESH_S and not self._breaker.is_open:
            return True
        descriptor = _descriptor(record.dbapi_connection)
        return descriptor is None or not _is_readable(descriptor, timeout_s=0)

    def connect(self, open_connection: Callable[[], Any]) -> Any:
        """Open a connection and record the result in the circuit breaker.

        Raises:
            DatabaseDownError: the connection failed, or the circuit breaker is open.
        """
        pause_s = None if self._is_probe_thread() else self._breaker.begin()
        if pause_s is not None:
            raise DatabaseDownError(pause_s)
        began_at = time.monotonic()
        try:
            connection = open_connection()
        except Exception as error:
            self._is_silent = time.monotonic() - began_at >= SLOW_S
            if self._breaker.fail():
                self._log("database.down", _masked_line(error, self._password))
            raise DatabaseDownError(self._breaker.pause_s or 1) from error
        except BaseException:  # A signal handler of the web server raised the exception.
            self._breaker.fail()
            raise
        self._is_silent = False
        if self._breaker.succeed():
            self._log("database.back")
        return connection

    def close(self, connection: Any, close_connection: Callable[[], None]) -> None:
        """Close a connection and wait until the server process of the connection ends.

        The permit is free only after the server process ends. So the server never has more
        connections than the budget.
        """
        duplicate = _duplicate_descriptor(connection)
        if duplicate is None:
            close_connection()
            return
        try:
            close_connection()
            timeout_s = 0.0 if self._is_silent else CLOSE_TIMEOUT_S
            self._is_silent = not _reaches_eof(duplicate, timeout_s)
        finally:
            os.close(duplicate)

    def _start_probe_if_due(self) -> None:
        if self._breaker.begin_probe():
            try:
                threading.Thread(target=self._probe, name="tenantry-probe", daemon=True).start()
            except RuntimeError:  # The process has reached its limit of threads.
                self._breaker.end_probe()

    def _probe(self) -> None:
        self._thread.is_probing = True
        try:
            with suppress(Exception):  # `connect` has recorded and logged the failure.
                self.probe()
        finally:
            self._breaker.end_probe()

    def _is_probe_thread(self) -> bool:
        return getattr(self._thread, "is_probing", False)

    def _log(self, event: str, reason: str = "") -> None:
        extra = {"tenant": self._owner} | ({"reason": reason} if reason else {})
        _logger.warning(event, extra=extra)


def _descriptor(connection: Any) -> int | None:
    """Return a psycopg connection's file descriptor; None if closed, or for other drivers.

    With other drivers, only the checks of idle connections are missing.
    """
    try:
        return int(connection.fileno())
    except Exception:  # noqa: BLE001 - drivers raise errors of their own for a closed connection
        return None


def _duplicate_descriptor(connection: Any) -> int | None:
    """Return a descriptor that outlives a connection; None without an open descriptor."""
    descriptor = _descriptor(connection)
    try:
        return None if descriptor is None else os.dup(descriptor)
    except OSError:  # If too many files are open, closing the connection helps.
        return None


def _is_readable(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(timeout_s, 0.0) * 1000))


def _reaches_eof(descriptor: int, timeout_s: float) -> bool:
    """Drop the server's data; return whether the server closes the connection in time.

    PostgreSQL closes the socket only when the backend exits; by then, the backend no longer counts
    as a connection.
    """
    deadline = time.monotonic() + timeout_s
    while _is_readable(descriptor, deadline - time.monotonic()):
        try:
            if not os.read(descriptor, 65536):
                return True
        except OSError:  # The server has reset the connection.
            return True
    return False


def _masked_line(error: BaseException, password: str) -> str:
    """Return the text of an error as one line, without the password."""
    text = one_line(error)
    return text.replace(password, "***") if password else text
