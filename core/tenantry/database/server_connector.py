"""Opens, checks and closes connections to a server, and fails fast while it is down."""

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
"""Maximum seconds to wait, after a connection is closed, until its server process has ended.

The server process usually ends within 2 ms, or within 0.3 s on a busy machine. If the server is
frozen, one request waits for the full time. Until the server responds again, later requests do not
wait.
"""

FRESH_S = 0.5
"""Maximum idle seconds of a connection that is used again without checking its socket.

Checking a socket releases the interpreter lock. On a busy worker, reacquiring the interpreter lock
takes longer than a query. A restart of the server or an idle timeout takes longer than `FRESH_S`.
If the server ends a connection within that time, one request gets 503.
"""

_logger = logging.getLogger(__name__)


class ServerConnector:
    """Opens connections to the database server of a tenant.

    While the server is down, opening a connection fails immediately, and a request may start a
    probe. A probe is a thread that connects once. Requests do not wait for a probe.

    Args:
        owner: the tenant's name.
        password: the database password, which is masked in log lines.
    """

    def __init__(self, owner: str, password: str = "") -> None:
        self.probe: Callable[[], None] = lambda: None
        """A function that opens one connection. `make_engine` sets this function."""
        self._owner = owner
        self._password = password
        self._breaker = CircuitBreaker()
        self._is_silent = False  # whether the last attempt got no response in time
        self._thread = threading.local()  # `is_probing` says whether a thread is a probe

    def check_available(self, *, must_open: bool) -> None:
        """Check that the server is not known to be down.

        A server that refuses new connections may still serve open connections, but a silent server
        serves none.

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
        """Whether an idle connection has received neither a message nor EOF from the server.

        A connection that was in use within the last `FRESH_S` seconds is not checked.
        """
        if idle_s < FRESH_S and not self._breaker.is_open:
            return True
        descriptor = _descriptor(record.dbapi_connection)
        return descriptor is None or not _is_readable(descriptor, timeout_s=0)

    def connect(self, open_connection: Callable[[], Any]) -> Any:
        """Open a connection, and record the result in the circuit breaker.

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
        except BaseException:  # a signal handler of the web server raised the exception
            self._breaker.fail()
            raise
        self._is_silent = False
        if self._breaker.succeed():
            self._log("database.back")
        return connection

    def close(self, connection: Any, close_connection: Callable[[], None]) -> None:
        """Close a connection, and wait until its server process has ended.

        The permit of the connection is released after the server process has ended. Therefore, the
        server never has more connections than the budget allows.
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
            except RuntimeError:  # the system refuses another thread
                self._breaker.end_probe()

    def _probe(self) -> None:
        self._thread.is_probing = True
        try:
            with suppress(Exception):  # `connect` has logged the failure
                self.probe()
        finally:
            self._breaker.end_probe()

    def _is_probe_thread(self) -> bool:
        return getattr(self._thread, "is_probing", False)

    def _log(self, event: str, reason: str = "") -> None:
        extra = {"tenant": self._owner} | ({"reason": reason} if reason else {})
        _logger.warning(event, extra=extra)


def _descriptor(connection: Any) -> int | None:
    """Return the file descriptor of an open psycopg connection, or None.

    With drivers other than psycopg, idle connections are not checked.
    """
    try:
        return int(connection.fileno())
    except Exception:  # noqa: BLE001 - drivers raise their own exceptions for a closed connection
        return None


def _duplicate_descriptor(connection: Any) -> int | None:
    """Return a copy of a connection's file descriptor, or None if there is none to copy."""
    descriptor = _descriptor(connection)
    try:
        return None if descriptor is None else os.dup(descriptor)
    except OSError:  # the process has too many open files
        return None


def _is_readable(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(timeout_s, 0.0) * 1000))


def _reaches_eof(descriptor: int, timeout_s: float) -> bool:
    """Discard all data from the server, and return whether it closes the connection in time.

    PostgreSQL closes the socket only after the connection has stopped counting toward
    `max_connections`.
    """
    deadline = time.monotonic() + timeout_s
    while _is_readable(descriptor, deadline - time.monotonic()):
        try:
            if not os.read(descriptor, 65536):
                return True
        except OSError:  # the server has reset the connection
            return True
    return False


def _masked_line(error: BaseException, password: str) -> str:
    """Return the text of an error on one line, without the password."""
    text = one_line(error)
    return text.replace(password, "***") if password else text
