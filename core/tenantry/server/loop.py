"""The event loop of a worker: one thread at a time polls the connections, and runs short requests.

Leader and followers (Schmidt, O'Ryan, Kircher and Pyarali 2000): the leader polls, reads what has
arrived, and runs a request itself. If a request takes longer than `LONG_S`, the watcher appoints
another leader, so the other connections do not wait. Handing each request to a thread and back
took half of a small request's processor time.

Only the leader changes the state of a connection. Another thread returns a connection with `call`.
"""

import logging
import math
import os
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from tenantry.http.response_close import ResponseCutError
from tenantry.observability.scoreboard import Row
from tenantry.server.acceptor import BATCH, Acceptor
from tenantry.server.connection import CLOSED, LINGERING, Connection
from tenantry.server.thread_pool import ThreadPool

LONG_S = 0.005
"""Seconds that a request may keep the leader from polling: ten times the switch interval."""

MAX_EVENTS = 64
"""Maximum number of events of one poll. The next poll reports unhandled events again."""

FAULT_PAUSE_S = 0.1
"""Seconds that the leader waits after an exception in its own code, because the exception may
recur."""

_PARKED_AFTER_S = 0.05

_logger = logging.getLogger(__name__)


class Handler(Protocol):
    """What the loop calls: `serve` on any thread, and everything else on the leader's thread."""

    @property
    def ready(self) -> Mapping[int, Callable[[Connection], object]]:
        """The functions that handle a readable or writable connection, by connection state."""

    def on_accept(self, sock: socket.socket, peer: Any, listener: Any) -> None:
        """Begin a new connection, and add it to the loop."""

    def on_full(self, is_full: bool) -> None:
        """Note whether the worker can accept another connection."""

    def on_fault(self, connection: Connection) -> None:
        """Release the resources of a connection after an exception."""

    def on_check(self, now: float) -> float:
        """Check time limits and waiting requests; return when to check again."""

    def serve(self, item: Any) -> None:
        """Serve a request in a thread of its own."""


class _Lead:
    """The item of the thread pool that makes a thread the leader."""


_LEAD = _Lead()


class Loop:
    """The poller and the threads of a worker, from `start` until the end of the process.

    Args:
        handler: handles the events.
        max_threads: maximum number of threads, including the leader.
        max_connections: maximum number of connections of the worker.
        row: shows other workers the number of connections; None without other workers.
    """

    def __init__(
        self, handler: Handler, *, max_threads: int, max_connections: int, row: Row | None = None
    ) -> None:
        self._handler = handler
        self._pool: ThreadPool[Any] = ThreadPool(max_threads, self._run_item)
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._acceptor = Acceptor(self._epoll, row)
        self._max_connections = max_connections
        self._is_full = False
        self.connections: dict[int, Connection] = {}
        """The open connections by file descriptor, oldest first; for the leader only."""
        self._calls: deque[tuple[Any, ...]] = deque()  # function, connection, arguments
        self._is_polling = False
        self._lock = threading.Lock()  # protects `_leader` and `_inline_since`
        self._leader = 0  # identifier of the leader's thread; 0 while a thread takes over
        self._inline_since = 0.0  # when the leader began to run a request; 0 while it polls
        self._is_watched = True
        # Ends the wait of the main thread. This is a pipe, because a signal handler that interrupts
        # `Event.wait` could never get the lock of the `Event`.
        self._activity = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.check_at = 0.0
        """Time at which `Handler.on_check` is due, in seconds of the monotonic clock. Only the
        leader writes `check_at`."""
        self._must_check = False
        self.now = time.monotonic()
        """Time at which the last poll ended, in seconds of the monotonic clock."""

    # -- called by the worker's main thread -----------------------------------------------------

    def start(self, listeners: list[tuple[socket.socket, Any]]) -> None:
        """Accept connections from the listeners, and appoint the first leader."""
        self._acceptor.start(listeners)
        self._pool.do(_LEAD)

    def watch_leader(self, is_wanted: Callable[[], bool], signals_fd: int = -1) -> None:
        """Appoint another leader whenever a request takes long, while `is_wanted` returns True.

        Args:
            is_wanted: called after each wait.
            signals_fd: a file descriptor that a signal makes readable, which ends the wait.
        """
        seen_at = time.monotonic()
        while is_wanted():
            since, now = self._inline_since, time.monotonic()
            if since:
                seen_at = now
                left_s = since + LONG_S - now
                if left_s <= 0:
                    self._depose(since)
                    left_s = LONG_S
                time.sleep(left_s)
            elif now - seen_at < _PARKED_AFTER_S:
                time.sleep(LONG_S)
            else:
                self._park(signals_fd)
                seen_at = time.monotonic()

    def _park(self, signals_fd: int) -> None:
        """Wait for the next request without waking up 200 times a second."""
        poll = select.poll()
        for fd in (self._activity[0], signals_fd):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        self._is_watched = False
        if not self._inline_since:  # read this value after `_is_watched` is written
            for fd, _ in poll.poll(1000):
                with suppress(OSError):  # another reader has emptied the pipe
                    os.read(fd, 4096)
        self._is_watched = True

    def _depose(self, since: float) -> None:
        with self._lock:
            if self._inline_since != since:
                return
            self._inline_since, self._leader = 0.0, 0
        self._pool.do(_LEAD, is_first=True)

    # -- called by any thread -------------------------------------------------------------------

    def call(self, function: Callable[..., object], connection: Connection, *rest: Any) -> None:
        """Call a function for a connection on the leader's thread soon. Thread-safe."""
        self._calls.append((function, connection, *rest))
        if self._is_polling:
            self.wake()

    def check_soon(self) -> None:
        """Let the leader call `Handler.on_check` soon. Thread-safe."""
        self._must_check = True
        self.wake()

    def wake(self) -> None:
        """End the leader's wait. Thread-safe."""
        with suppress(OSError):  # the counter is full, so the leader wakes up anyway
            os.eventfd_write(self._wake_fd, 1)

    def hand_off(self, item: Any) -> None:
        """Let another thread serve a request."""
        self._pool.do(item)

    # -- called by the leader -------------------------------------------------------------------

    def run_inline(self, function: Callable[[Any], object], item: Any) -> bool:
        """Run a request on the leader's thread; return whether the thread is still the leader."""
        self._inline_since = time.monotonic()
        if not self._is_watched:
            with suppress(OSError):  # the pipe is full, so the main thread wakes up anyway
                os.write(self._activity[1], b"1")
        try:
            function(item)
        finally:
            with self._lock:
                is_leader = self._leader == threading.get_ident()
                if is_leader:
                    self._inline_since = 0.0
        return is_leader

    def guard(self, function: Callable[..., object], connection: Connection, *rest: object) -> None:
        """Call a function for a connection. An exception ends only the connection."""
        try:
            function(connection, *rest)
        except BaseException:  # noqa: BLE001 - logged in `_give_up`
            self._give_up(connection)

    def watch(self, connection: Connection, mask: int) -> None:
        """Watch a connection for the events in `mask`."""
        if connection.mask == mask:
            return
        if connection.mask:
            self._epoll.modify(connection.fd, mask)
        else:
            self._epoll.register(connection.fd, mask)
        connection.mask = mask

    def unwatch(self, connection: Connection) -> None:
        """Stop watching a connection."""
        if connection.mask:
            connection.mask = 0
            with suppress(OSError):  # the connection is closed
                self._epoll.unregister(connection.fd)

    def add(self, connection: Connection) -> None:
        """Add a new connection."""
        self.connections[connection.fd] = connection
        self._acceptor.note_opened(1)
        if len(self.connections) >= self._max_connections and not self._is_full:
            self._is_full = True
            self._acceptor.pause()
            self._handler.on_full(True)

    def linger(self, connection: Connection) -> None:
        """Note that a connection has its last response, and only has to drain."""
        connection.state = LINGERING
        self._acceptor.note_opened(-1)

    def forget(self, connection: Connection) -> None:
        """Close a connection, so that the worker can accept another connection."""
        # The file descriptor may already belong to another connection.
        if self.connections.get(connection.fd) is connection:
            del self.connections[connection.fd]
            if connection.state != LINGERING:
                self._acceptor.note_opened(-1)
        # Closing the socket does not end the polling if a process that a tenant has started holds a
        # copy of the socket.
        self.unwatch(connection)
        connection.close()
        if self._is_full and len(self.connections) < self._max_connections:
            self._is_full = False
            self._acceptor.resume(self.now)
            self._handler.on_full(False)

    @property
    def needs_room(self) -> bool:
        """Whether the worker has its maximum of connections or of file descriptors."""
        return self._is_full or self._acceptor.lacks_resources(self.now)

    def stop_accepting(self) -> None:
        """Accept no more connections."""
        self._acceptor.stop()

    # -- the leader -----------------------------------------------------------------------------

    def _run_item(self, item: Any) -> None:
        if item is _LEAD:
            self._lead()
        else:
            self._handler.serve(item)

    def _lead(self) -> None:
        """Poll until another thread becomes the leader."""
        own = threading.get_ident()
        with self._lock:
            self._leader = own
        while True:
            try:
                if not self._poll_once(own):
                    return
            except Exception:  # the loop of all tenants must continue
                _logger.exception("worker.loop_failed")
                time.sleep(FAULT_PAUSE_S)

    def _poll_once(self, own: int) -> bool:
        """Handle the events of one poll; return whether the thread is still the leader."""
        handler, connections = self._handler, self.connections
        self._is_polling = True
        # A call that was added before `_is_polling` was True has woken no thread.
        due_at = min(self.check_at, self._acceptor.resumes_at)
        timeout_s = 0.0 if self._calls else max(due_at - time.monotonic(), 0.0)
        events = self._epoll.poll(timeout_s, MAX_EVENTS)
        self._is_polling = False
        self.now = time.monotonic()
        for fd, _ in events:
            connection = connections.get(fd)
            if connection is None:
                self._handle_other(fd)
            else:
                try:
                    handler.ready[connection.state](connection)
                except BaseException:  # noqa: BLE001 - logged in `_give_up`
                    self._give_up(connection)
            if self._leader != own:
                return False
        if self._calls and not self._run_calls(own):
            return False
        if self.now >= self._acceptor.resumes_at:
            self._acceptor.resumes_at = math.inf
            if not self._is_full:
                self._acceptor.resume(self.now)
        if self._must_check or self.now >= self.check_at:
            # This value is written first, so that a later `check_soon` is not lost.
            self._must_check = False
            self.check_at = handler.on_check(self.now)
        return self._leader == own

    def _handle_other(self, fd: int) -> None:
        if fd == self._wake_fd:
            with suppress(BlockingIOError):
                os.eventfd_read(fd)
        else:
            self._accept(fd)

    def _run_calls(self, own: int) -> bool:
        for _ in range(len(self._calls)):
            try:
                function, connection, *rest = self._calls.popleft()
            except IndexError:
                break
            if connection.state == CLOSED:
                continue
            self.guard(function, connection, *rest)
            if self._leader != own:
                return False
        return True

    def _give_up(self, connection: Connection) -> None:
        """Close a connection after an exception. Other connections continue."""
        error = sys.exc_info()
        if not isinstance(error[1], ResponseCutError):  # a disconnection is not a fault
            _logger.error("worker.connection_failed", exc_info=error)
        try:
            self._handler.on_fault(connection)
        finally:
            self.forget(connection)

    def _accept(self, fd: int) -> None:
        """Accept the connections that wait at a listener, at most `BATCH`."""
        own = self._leader
        for _ in range(BATCH):
            accepted = self._acceptor.accept(fd, self.now)
            if accepted is None:
                return
            self._begin(accepted)
            if self._leader != own or not self._acceptor.is_accepting:
                return

    def _begin(self, accepted: tuple[socket.socket, Any, Any]) -> None:
        client = accepted[0]
        try:
            self._handler.on_accept(*accepted)
        except BaseException:  # noqa: BLE001 - logged in `_give_up`
            connection = self.connections.get(client.fileno())
            if connection is None:
                client.close()
            else:
                self._give_up(connection)
