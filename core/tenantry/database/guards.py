"""Who stands before a tenant's database connections: is it there, is it the same, does it answer?

A `ServerGuard` keeps a breaker, so that a database that is down costs only its own tenant; a
`FileGuard` never lets SQLite make an empty file in the place of one that was deleted.
"""

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy.pool import ConnectionPoolEntry

from tenantry.database.circuit_breaker import Breaker
from tenantry.database.errors import DatabaseDownError

GOODBYE_S = 2.0
"""How long a closed connection's server process may take to end before it is counted as gone: it
takes some 2 ms, 0.3 s on a busy machine. A server that is frozen costs whoever gets the place of
one of its idle connections that long, once: after that nobody waits until it answers again."""

FRESH_S = 0.5
"""How long a connection that came back is taken to be alive without a look at it. The look lets go
of the interpreter, which a worker with much to do gives back only when its other threads have had
it: it cost a request more than its query. A server that restarts takes longer than this, and what
a firewall or a time-out of idle connections cuts was idle for longer; one that is ended by hand
meanwhile costs one request, a 503."""

PING_S = 0.03
"""How long an idle connection may take to answer while no new one can be opened: then it may be as
frozen as the server, and a request is to be refused within 0.1 s."""

FILE = "tenantry.file"
"""Key of a connection's `info`: device and inode of its SQLite file."""

_logger = logging.getLogger(__name__)


class ServerGuard:
    """Stands before connections to a database server: refuses at once while it is down.

    While it is down, a request may start a probe, a thread that connects once; no request waits.

    Args:
        owner: the tenant's name.
        password: shown in no message.
    """

    def __init__(self, owner: str, password: str = "") -> None:
        self._owner = owner
        self._password = password
        self._breaker = Breaker()
        self._is_silent = False  # a server process did not end in time
        self.is_frozen = False
        """Whether it answered nobody when it was asked last; what waits for it is given up."""
        self._doubting = threading.Lock()  # one asks at a time
        self._thread = threading.local()  # `is_probing`: this thread is the probe
        self.probe: Callable[[], None] = lambda: None
        """Connects once; set by who makes the engine."""

    def check(self) -> None:
        """Refuse while the server is known to be down.

        Raises:
            DatabaseDownError: it is.
        """
        pause_s = self._breaker.pause_s
        if pause_s is None or self._is_probe():
            return
        self._have_probed()
        raise DatabaseDownError(pause_s)

    def is_good(self, record: ConnectionPoolEntry, idle_s: float) -> bool:
        """Whether nothing has come on an idle connection: its server said goodbye, or died.

        One that was used just now is not looked at. While the server is known to be down it is
        asked, too: it may be frozen.
        """
        if idle_s < FRESH_S and not self._breaker.is_open:
            return True
        socket = _socket_of(record.dbapi_connection)
        if socket is None:
            return True
        poll = select.poll()
        poll.register(socket, select.POLLIN)
        if poll.poll(0):
            return False
        if not self._breaker.is_open:
            return True
        self._have_probed()
        is_awake = _is_awake(record.dbapi_connection, PING_S)
        self._is_silent = self._is_silent or not is_awake
        return is_awake

    def doubt(self, is_answering: Callable[[], bool]) -> None:
        """Find out by `is_answering` whether the server is frozen, unless somebody does already.

        A query that waits asks for this: what is open tells nothing of a server that is frozen.
        """
        if not self._doubting.acquire(blocking=False):
            return
        try:
            if is_answering():
                return
            self.is_frozen = self._is_silent = True
            if self._breaker.fail():
                self._log("database.down", "it answers neither a query nor a new connection")
        finally:
            self._doubting.release()

    def _have_probed(self) -> None:
        """Start a probe, if it is time for one."""
        if self._breaker.begin_probe():
            try:
                threading.Thread(target=self._probe, name="tenantry-probe", daemon=True).start()
            except RuntimeError:  # the system lets this process have no more now
                self._breaker.end_probe()

    def open(self, connect: Callable[[], Any]) -> Any:
        """Connect, and note how that went.

        Raises:
            DatabaseDownError: it failed, or others just fail.
        """
        pause_s = None if self._is_probe() else self._breaker.begin()
        if pause_s is not None:
            raise DatabaseDownError(pause_s)
        try:
            connection = connect()
        except Exception as error:
            if self._breaker.fail():
                self._log("database.down", _one_line(error, self._password))
            raise DatabaseDownError(self._breaker.pause_s or 1) from error
        except BaseException:  # a signal handler of the server
            self._breaker.fail()
            raise
        self._is_silent = self.is_frozen = False
        if self._breaker.succeed():
            self._log("database.back")
        return connection

    def close(self, connection: Any, close: Callable[[], None]) -> None:
        """Close it, and wait until its server process has ended, so that no server has too many."""
        ours = _second_socket_of(connection)
        if ours is None:
            close()
            return
        try:
            close()
            self._is_silent = not _ends_within(0.0 if self._is_silent else GOODBYE_S, ours)
        finally:
            os.close(ours)

    def _is_probe(self) -> bool:
        return getattr(self._thread, "is_probing", False)

    def _probe(self) -> None:
        self._thread.is_probing = True
        try:
            with suppress(Exception):  # `open` noted it
                self.probe()
        finally:
            self._breaker.end_probe()

    def _log(self, event: str, reason: str = "") -> None:
        extra = {"tenant": self._owner} | ({"reason": reason} if reason else {})
        _logger.warning(event, extra=extra)


class FileGuard:
    """Stands before connections to a SQLite file: never makes one in the place of a deleted one.

    A marker beside the file, `<file>.made`, says that it was there; so all processes know, also
    after a restart. Where it cannot be written, nobody is told.

    Args:
        owner: the tenant's name.
        path: the file.
    """

    def __init__(self, owner: str, path: Path) -> None:
        self._owner = owner
        self._path = path
        self._text = str(path)
        self._marker = path.with_name(f"{path.name}.made")
        self._was_there = False
        self._is_marked = False
        self._is_told = False

    def check(self) -> None:
        """Refuse while the file is gone.

        Raises:
            DatabaseDownError: it is.
        """
        is_unmarked = not self._was_there or self._is_marked  # also: whoever deleted the marker
        if file_at(self._text) or (is_unmarked and not file_at(str(self._marker))):
            return
        if not self._is_told:
            remedy = f"restore it, or delete {self._marker.name} too to begin with an empty one"
            reason = f"{self._path} is gone; {remedy}"
            _logger.error("database.down", extra={"tenant": self._owner, "reason": reason})
        self._is_told = True
        raise DatabaseDownError(10)

    def is_good(self, record: ConnectionPoolEntry, _: float) -> bool:
        """Whether the connection's file is still the one at its path."""
        file = file_at(self._text)
        if file is None or record.info.setdefault(FILE, file) != file:
            return False
        if not self._was_there:
            self._mark()
        return True

    def open(self, connect: Callable[[], Any]) -> Any:
        """Open it, unless it is gone.

        Raises:
            DatabaseDownError: it is.
        """
        self.check()
        return connect()

    def close(self, _: Any, close: Callable[[], None]) -> None:
        """Close it."""
        close()

    def _mark(self) -> None:
        self._was_there = True
        text = f"Tenantry makes no empty {self._path.name} while this file is here.\n"
        with suppress(OSError):  # a full disk, a folder of somebody else
            self._marker.write_text(text)
            self._is_marked = True


def file_at(path: str) -> tuple[int, int] | None:
    """Return device and inode of the file that is at `path` now."""
    try:
        stat = os.stat(path)  # noqa: PTH116 - once for each use of a connection
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _socket_of(connection: Any) -> int | None:
    """Return the file descriptor of a psycopg connection; None of another or a closed one."""
    try:
        return int(connection.pgconn.socket)
    except Exception:  # noqa: BLE001 - whatever a driver raises for a connection that is closed
        return None


def _second_socket_of(connection: Any) -> int | None:
    """Return a file descriptor that outlives the connection's, and hears the other end close."""
    socket = _socket_of(connection)
    try:
        return None if socket is None else os.dup(socket)
    except OSError:  # too many are open; closing gives one back
        return None


def _is_awake(connection: Any, seconds: float) -> bool:
    """Whether an idle psycopg connection answers an empty query in time; else it is of no use."""
    deadline = time.monotonic() + seconds
    try:
        line = connection.pgconn
        line.send_query(b"")
        line.flush()
        poll = select.poll()
        poll.register(line.socket, select.POLLIN)
        while poll.poll(max(deadline - time.monotonic(), 0.0) * 1000):
            line.consume_input()
            while not line.is_busy():
                if line.get_result() is None:
                    return True
    except Exception:  # noqa: BLE001 - whatever a driver raises for a connection that is lost
        return False
    return False


def _ends_within(seconds: float, socket: int) -> bool:
    """Whether the other end closes in time; what it still says is read and dropped.

    PostgreSQL leaves its end to the exit of the process, after that left all counts of backends.
    """
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    while poll.poll(max(deadline - time.monotonic(), 0.0) * 1000):
        try:
            if not os.read(socket, 65536):
                return True
        except OSError:  # reset
            return True
    return False


def _one_line(error: BaseException, password: str) -> str:
    """Return an error's text as one line, without the password."""
    text = " ".join(str(error).split())
    return text.replace(password, "***") if password else text
