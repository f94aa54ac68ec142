"""A client's connection: its socket, the received bytes, and the bytes that still have to be sent.

The socket never blocks, unless an app takes it over. One thread at a time uses a connection: the
leader of the loop, or the thread that runs the connection's request. There are two exceptions:
while the request runs, the leader can send bytes that wait for a slow client, and the watchdog of
the deadlines can send the connection's last response.
"""

import errno
import select
import socket
import threading
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tenantry.http.response_close import ResponseCutError
from tenantry.server.spool import Spool

if TYPE_CHECKING:
    from tenantry.server.exchange import Exchange

PATIENCE_S = 30.0
"""Seconds that a client has for a request body or a response, in addition to the time that
`LEAST_BYTES_PER_S` allows."""

LEAST_BYTES_PER_S = 1024
"""Number of bytes for which a client gets another second, enough for a slow mobile connection."""

SPOOLED_BYTES = 16 << 20
"""Maximum bytes of one response that wait for a slow client without a thread. The thread of a
longer response waits for the client."""

SEND_BYTES = 256 << 10
"""Maximum bytes of a waiting response that are passed to the kernel at once."""

HEAD, BODY, BUSY, SENDING, LINGERING, CLOSED = range(6)
"""States of a connection: its request head arrives, its request body arrives, its request is
decided or served, its response is sent without a thread, it drains, it is closed."""


class Connection:
    """One connection, from `accept` to `close`.

    Args:
        sock: the socket, which must not block.
        peer: the address of the client, or of the proxy in front.
        listener: the facts that all requests of the connection share.
    """

    __slots__ = (
        "_outbox_lock", "buffer", "deadline", "drained_bytes", "exchange", "fd", "has_proxy_line",
        "is_hijacked", "is_waiting", "listener", "mask", "moved_bytes", "outbox", "peer", "proxied",
        "searched_bytes", "sent_bytes", "sent_exchange", "since", "sock", "state",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, peer: Any, listener: Any) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.peer = peer
        self.listener = listener
        self.proxied: dict[str, str] = {}
        """Environ keys from the connection's PROXY line."""
        self.has_proxy_line = False
        self.state = HEAD
        self.mask = 0
        """Events that the poller waits for; 0 if the poller does not know the connection."""
        self.buffer = b""
        """Bytes that have arrived, and that no request has taken."""
        self.searched_bytes = 0
        self.exchange: Exchange | None = None
        """The request that is received, waits or runs."""
        self.sent_exchange: Exchange | None = None
        """The request whose response is being sent."""
        self.outbox: _Outbox | None = None
        # Protects `outbox` while a thread runs the request, because the leader sends at the same
        # time. While a thread holds this lock, `_Room` takes its own lock, which protects only two
        # numbers.
        self._outbox_lock = threading.Lock()
        self.sent_bytes = 0
        """Bytes of all responses that the kernel has accepted."""
        self.is_hijacked = False
        """Whether an app has taken over the socket; the connection closes after its request."""
        self.is_waiting = False
        """Whether the thread of the request waits for the client."""
        self.deadline = 0.0
        """Time at which the server closes the connection, in seconds of the monotonic clock."""
        self.since = 0.0
        """The time at which the transfer of the current body or response began."""
        self.moved_bytes = 0
        self.drained_bytes = 0

    def receive(self, size_bytes: int) -> bytes | None:
        """Return received bytes; None if there are none yet; b"" after a disconnection."""
        try:
            return self.sock.recv(size_bytes)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def begin_moving(self, now: float) -> None:
        """Begin to measure the speed of the client."""
        self.since, self.moved_bytes = now, 0
        self.deadline = now + PATIENCE_S

    def note_moved(self, size_bytes: int) -> None:
        """Give the client more time for the bytes that were transferred."""
        self.moved_bytes += size_bytes
        self.deadline = self.since + PATIENCE_S + self.moved_bytes / LEAST_BYTES_PER_S

    # -- sending --------------------------------------------------------------------------------

    def send(self, data: bytes, exchange: "Exchange") -> None:
        """Send bytes, and keep what the client does not accept yet for `flush`.

        Raises:
            ResponseCutError: the client has disconnected, or reads too slowly.
        """
        rest = memoryview(data)
        if self.outbox is None:
            try:  # the code of `_send_some`, without another call for each response
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise ResponseCutError("the client has disconnected") from error
            self.sent_bytes += sent
            if sent == len(data):
                return
            self.begin_moving(time.monotonic())
            rest = rest[sent:]
        self._keep(rest, exchange)

    def _send_some(self, data: bytes | memoryview) -> int:
        """Send what the client accepts now; return the number of bytes."""
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ResponseCutError("the client has disconnected") from error
        self.sent_bytes += sent
        return sent

    def _keep(self, rest: memoryview, exchange: "Exchange") -> None:
        """Add bytes to the bytes that wait for the client.

        If the budget is used up, wait for the client.
        """
        while rest:
            with self._outbox_lock:
                if self._flush():
                    sent = self._send_some(rest)
                    self.note_moved(sent)
                    rest = rest[sent:]
                    if sent:
                        continue
                if self.outbox is None:
                    self.outbox = _Outbox(exchange.new_spool())
                    exchange.on_backlog(self)
                if self.outbox.add(rest):
                    return
            if not exchange.may_wait:
                raise ResponseCutError("there is no room for bytes that the client does not read")
            self._wait_for_client()

    def flush(self) -> bool:
        """Send bytes that wait, as many as the client accepts now; return whether none is left.

        Raises:
            ResponseCutError: the client has disconnected.
        """
        with self._outbox_lock:
            return self._flush()

    def _flush(self) -> bool:
        outbox = self.outbox
        if outbox is None:
            return True
        while data := outbox.peek(SEND_BYTES):
            sent = self._send_some(data)
            outbox.skip(sent)
            self.note_moved(sent)
            if sent < len(data):
                return False
        outbox.close()
        self.outbox = None
        return True

    def _wait_for_client(self) -> None:
        """Wait until the client accepts bytes.

        Raises:
            ResponseCutError: the client does not accept bytes in time.
        """
        left_s = self.deadline - time.monotonic()
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        self.is_waiting = True
        try:
            if left_s <= 0 or not poll.poll(left_s * 1000):
                raise ResponseCutError("the client reads its response too slowly")
        finally:
            self.is_waiting = False

    def send_last(self, data: bytes) -> None:
        """Send bytes without waiting, as the end of the connection's last response."""
        with suppress(OSError):  # the client has disconnected or does not read
            self.sock.send(data)
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self.state = CLOSED
        if self.outbox is not None:
            self.outbox.close()
            self.outbox = None
        with suppress(OSError):
            self.sock.close()


class _Outbox:
    """The bytes of a response that the client does not accept yet."""

    __slots__ = ("_position", "_spool")

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._position = 0

    def add(self, data: bytes | memoryview) -> bool:
        """Add bytes; return False if the budget is used up."""
        return self._spool.size_bytes + len(data) <= SPOOLED_BYTES and self._spool.write(data)

    def peek(self, size_bytes: int) -> bytes:
        """Return the next bytes."""
        return self._spool.read_at(self._position, size_bytes)

    def skip(self, size_bytes: int) -> None:
        """Drop bytes that were sent."""
        self._position += size_bytes

    def close(self) -> None:
        """Free the bytes."""
        self._spool.close()


_HARMLESS = frozenset({"family", "getpeername", "getsockname", "proto", "type"})
"""Socket attributes that an app may use without taking over the connection."""


class HijackableSocket(SimpleNamespace):
    """The client's socket for an app that takes over the connection, such as for a WebSocket.

    The first use hijacks the connection. The socket then blocks like any other socket, and the
    server sends nothing more and closes the connection after the request.

    Args:
        exchange: the request. After its end, the connection may serve another tenant, so every use
            of the socket raises an `OSError`.
    """

    exchange: "Exchange"

    def __getattr__(self, name: str) -> Any:
        exchange = self.exchange
        if exchange.is_over:
            raise OSError(errno.EBADF, "the request of this connection has ended")
        connection = exchange.connection
        if name not in _HARMLESS and not connection.is_hijacked:
            connection.is_hijacked = True
            connection.sock.setblocking(True)
        return getattr(connection.sock, name)
