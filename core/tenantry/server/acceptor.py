"""Accepts new connections, within the limits of connections and file descriptors.

The workers share their listeners, so the first worker to run could accept a whole burst of
connections. With 16 keep-alive clients and 2 workers, one worker sometimes got all connections, and
the throughput was between 0.8 and 2.4 times that of gunicorn's threaded worker. Therefore, a worker
with more connections than another worker briefly leaves a new connection to the other workers.

Connections that only drain do not count, and a worker accepts few connections at once. Otherwise,
clients that open a connection for each request would wait for `LEAVE_S` again and again, which
halved the number of requests per second.
"""

import errno
import logging
import math
import select
import socket
from typing import Any

from tenantry.observability.scoreboard import Row

OUT_OF_RESOURCES_PAUSE_S = 1.0
"""Seconds without `accept` after the process has run out of file descriptors."""

LEAVE_S = 0.002
"""Seconds for which a worker leaves a new connection to workers with fewer connections. An idle
worker needs less time to accept it. If no other worker does, the first worker accepts the
connection."""

SLACK = 4
"""Number of connections by which a worker may exceed the worker with the fewest connections."""

BATCH = 2
"""Maximum number of connections that a worker accepts between two polls. If no other worker accepts
a connection that a worker has left, the worker accepts this many before it leaves another
connection."""

_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_logger = logging.getLogger(__name__)


class Acceptor:
    """The listening sockets of a worker.

    After `start`, only the leader of the loop uses this class.

    Args:
        poller: polls the listeners while the worker accepts connections.
        row: shows other workers the number of connections; None without other workers.
    """

    def __init__(self, poller: "select.epoll", row: Row | None = None) -> None:
        self._poller = poller
        self._row = row
        self._open = 0  # without connections that only drain
        self._own_connections = 0
        self._listeners: dict[int, tuple[socket.socket, Any]] = {}
        self._lacks_until = 0.0  # monotonic time until which `accept` is expected to fail
        self.resumes_at = math.inf
        """Time at which `resume` is due after a pause of the acceptor, in monotonic seconds."""
        self.is_accepting = False
        """Whether this worker accepts new connections."""

    def start(self, listeners: list[tuple[socket.socket, Any]]) -> None:
        """Accept connections from the listeners.

        The argument maps each listener to the facts that all its connections share.
        """
        for sock, facts in listeners:
            sock.setblocking(False)
            self._listeners[sock.fileno()] = (sock, facts)
        self.resume(0.0)

    def resume(self, now: float) -> None:
        """Accept connections, unless the process has just run out of file descriptors."""
        if self.is_accepting or self.lacks_resources(now):
            return
        self.is_accepting, self.resumes_at = True, math.inf
        for fd in self._listeners:
            # The poller does not use EPOLLEXCLUSIVE, because it gave all connections of an idle
            # host to one worker.
            self._poller.register(fd, select.EPOLLIN)

    def pause(self) -> None:
        """Leave new connections to other workers."""
        if self.is_accepting:
            self.is_accepting = False
            for fd in self._listeners:
                self._poller.unregister(fd)

    def stop(self) -> None:
        """Accept no more connections."""
        self.pause()
        self.resumes_at = math.inf
        self._listeners.clear()

    def note_opened(self, change: int) -> None:
        """Note how many open connections the worker has more, without those that only drain."""
        self._open += change
        if self._row is not None:
            self._row.show_connections(self._open)

    def lacks_resources(self, now: float) -> bool:
        """Whether the process has just run out of file descriptors."""
        return now < self._lacks_until

    def _leaves_it(self, now: float) -> bool:
        """Pause if another worker has fewer connections. Return whether this worker pauses."""
        if self._row is None or self._open <= SLACK:
            return False
        if self._own_connections:  # after a pause, this worker accepts `BATCH` connections
            self._own_connections -= 1
            return False
        if self._open <= self._row.scoreboard.fewest_connections() + SLACK:
            return False
        self._own_connections = BATCH
        self.pause()
        self.resumes_at = now + LEAVE_S
        return True

    def accept(self, fd: int, now: float) -> tuple[socket.socket, Any, Any] | None:
        """Return a new connection's socket, its peer and the facts of its listener, or None."""
        sock, facts = self._listeners.get(fd, (None, None))
        if sock is None or self._leaves_it(now):
            return None
        try:
            client, peer = sock.accept()
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                _logger.warning(
                    "worker.accept_failed",
                    extra={"reason": f"{error}; raise `ulimit -n` or lower worker_connections."},
                )
                self.pause()
                self._lacks_until = self.resumes_at = now + OUT_OF_RESOURCES_PAUSE_S
            return None
        client.setblocking(False)
        return client, peer, facts
