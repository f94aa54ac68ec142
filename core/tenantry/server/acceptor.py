"""Accepts new connections, while the worker has room and file descriptors for them."""

import errno
import logging
import select
import socket
from typing import Any

OUT_OF_RESOURCES_PAUSE_S = 1.0
"""Seconds without `accept` after the process has run out of file descriptors."""

_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_logger = logging.getLogger(__name__)


class Acceptor:
    """The listening sockets of a worker. Only the leader of the loop uses it, after `start`.

    Args:
        poller: polls the listeners while the worker accepts connections.
    """

    def __init__(self, poller: "select.epoll") -> None:
        self._poller = poller
        self._listeners: dict[int, tuple[socket.socket, Any]] = {}
        self._resumes_at = 0.0  # monotonic time; in the future while out of descriptors
        self.is_accepting = False
        """Whether new connections come to this worker."""

    def start(self, listeners: list[tuple[socket.socket, Any]]) -> None:
        """Accept connections from the listeners, each with what its connections have in common."""
        for sock, facts in listeners:
            sock.setblocking(False)
            self._listeners[sock.fileno()] = (sock, facts)
        self.resume(0.0)

    def resume(self, now: float) -> None:
        """Accept connections, unless the process has just run out of file descriptors."""
        if self.is_accepting or self.lacks_resources(now):
            return
        self.is_accepting = True
        for fd in self._listeners:
            # Without EPOLLEXCLUSIVE, which gave all connections of an idle host to one worker.
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
        self._listeners.clear()

    def lacks_resources(self, now: float) -> bool:
        """Whether the process has just run out of file descriptors."""
        return now < self._resumes_at

    def accept(self, fd: int, now: float) -> tuple[socket.socket, Any, Any] | None:
        """Return a new connection's socket, its peer and the facts of its listener, or None."""
        sock, facts = self._listeners.get(fd, (None, None))
        if sock is None:
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
                self._resumes_at = now + OUT_OF_RESOURCES_PAUSE_S
            return None
        client.setblocking(False)
        return client, peer, facts
