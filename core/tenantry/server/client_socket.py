"""Patience: how long a thread waits for a client in all, for a request and for its answer.

Knows sockets only.
A time-out of each read begins anew with each byte: eight clients that sent one a second held the
eight threads of a worker for as long as they liked.
"""

import errno
import select
import ssl
import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 30.0
"""How long a thread waits for its client in all, in each direction: nobody sends or takes nothing
for so long who is still there."""

LEAST_BYTES_PER_S = 1024
"""Each so many bytes earn another second: what a bad telephone line carries."""

NOTICED_S = 0.05
"""Who waited less to go on writing did not wait for the client, but for its turn with the
interpreter lock: the system wakes a writer when a good part of its buffer is free."""

HELD_BYTES = 65536
"""What is sent together with the head of an answer, at most: more would cost a copy of it."""

_NOT_READY = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_HEAD = b"HTTP/1."  # how one begins, or a part of a body
_INTERIM = b"1"  # the status class of one that is not the last to its request
_BODILESS = (b"204", b"304")
_EMPTY = b"\r\ncontent-length: 0\r\n"


def _wait(raw: Any, event: int, seconds: float) -> bool:
    """Wait until a socket can be read or written; whether it can."""
    poll = select.poll()
    poll.register(raw, event)
    return bool(poll.poll(seconds * 1000))


class PatientSocket:
    """A client's socket, as the threads use it that serve its requests, one at a time.

    The socket itself never blocks: the main loop waits for many, and to change that for each
    request and back is a system call each. What a thread has to wait for it waits for here.

    Args:
        raw: the socket.
        clock: seconds.
        wait: waits until the socket can be read or written (`select.POLLIN`, `POLLOUT`), or so
            many seconds have passed; tells whether it can.
    """

    __slots__ = (
        "_clock", "_held", "_holds_head", "_receiving_s", "_sending_s", "_timeout_s", "_wait",
        "raw", "received_bytes", "sent_bytes",
    )  # fmt: skip

    def __init__(
        self,
        raw: Any,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[Any, int, float], bool] = _wait,
    ) -> None:
        self.raw = raw
        self._clock = clock
        self._wait = wait
        self._timeout_s: float | None = None
        raw.setblocking(False)
        self.begin()

    def begin(self, *, holds_head: bool = False) -> None:
        """Begin a request: the client has all its time before it.

        Args:
            holds_head: whether the head of its answer waits for the body that it announces.
        """
        self._holds_head = holds_head
        self.received_bytes = self.sent_bytes = 0
        self._receiving_s = self._sending_s = 0.0
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def gettimeout(self) -> float | None:
        """Return how long a single wait may take; None: as long as there is patience."""
        return self._timeout_s

    def settimeout(self, seconds: float | None) -> None:
        """Set how long a single wait may take."""
        self._timeout_s = seconds

    def setblocking(self, flag: bool) -> None:
        """Wait, or do not."""
        self._timeout_s = None if flag else 0.0

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive at most `size` bytes.

        Raises:
            TimeoutError: the client sends too slowly.
        """
        while True:
            try:
                data: bytes = self.raw.recv(size, flags)
            except _NOT_READY as why:
                left_s = _left_s(self.received_bytes, self._receiving_s)
                begun = self._clock()
                try:
                    self._await(why, select.POLLIN, left_s)
                finally:
                    self._receiving_s += self._clock() - begun
            else:
                self.received_bytes += len(data)
                return data

    def send(self, data: bytes, flags: int = 0) -> int:
        """Send it all, as `sendall` does; return its size."""
        self.sendall(data, flags)
        return len(data)

    def sendall(self, data: bytes, flags: int = 0) -> None:
        """Send it all; the head of an answer with what comes after it, or by `flush`.

        The server writes head and body one after another: sent at once they are one packet, and
        one call. A server is to wait with the head for the first bytes of the body (PEP 3333).
        One that announces none goes at once: the app may have work left for after its answer.

        Raises:
            ConnectionResetError: the client takes it too slowly.
        """
        if self._holds_head and _announces_body(data):
            self._held, self._holds_head = data, False
            return
        if self._held:
            if len(data) <= HELD_BYTES:
                data, self._held = self._held + data, b""
            else:
                self.flush()
        self._send(data, flags)

    def flush(self) -> None:
        """Send the head that waits for a body which has not come.

        Raises:
            ConnectionResetError: the client takes it too slowly.
        """
        if self._held:
            data, self._held = self._held, b""
            self._send(data, 0)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a file, by the system itself; each wait is bounded, and not all together."""
        self.flush()
        self.raw.settimeout(PATIENCE_S)
        try:
            size: int = self.raw.sendfile(file, offset, count)
        finally:
            self.raw.setblocking(False)
        self.sent_bytes += size
        return size

    def _send(self, data: bytes, flags: int) -> None:
        left: bytes | memoryview = data
        try:
            while left:
                try:
                    size = self.raw.send(left, flags)
                except _NOT_READY as why:
                    self._wait_to_send(why)
                    continue
                self.sent_bytes += size
                if size == len(left):
                    return
                left = memoryview(left)[size:]
        except TimeoutError as error:
            reason = "the client takes its answer too slowly"
            raise ConnectionResetError(errno.ECONNRESET, reason) from error

    def _wait_to_send(self, why: OSError) -> None:
        left_s = _left_s(self.sent_bytes, self._sending_s)
        begun = self._clock()
        try:
            self._await(why, select.POLLOUT, left_s)
        finally:
            waited_s = self._clock() - begun
            if waited_s > NOTICED_S:
                self._sending_s += waited_s

    def _await(self, why: OSError, event: int, left_s: float) -> None:
        """Wait for the client.

        Raises:
            TimeoutError: it did not do its part in time.
        """
        if isinstance(why, ssl.SSLWantReadError):
            event = select.POLLIN
        elif isinstance(why, ssl.SSLWantWriteError):
            event = select.POLLOUT
        timeout_s = left_s if self._timeout_s is None else min(left_s, self._timeout_s)
        if not self._wait(self.raw, event, timeout_s):
            raise TimeoutError("the client is too slow")


def _announces_body(data: bytes) -> bool:
    """Whether it is the head of an answer, the last one to its request, that a body follows."""
    if not data.startswith(_HEAD) or data[9:10] == _INTERIM or data[9:12] in _BODILESS:
        return False
    return _EMPTY not in data.lower()


def _left_s(moved_bytes: int, waited_s: float) -> float:
    """Return how long it may still take.

    Raises:
        TimeoutError: it has taken too long.
    """
    left_s = PATIENCE_S + moved_bytes / LEAST_BYTES_PER_S - waited_s
    if left_s <= 0:
        raise TimeoutError("the client is too slow")
    return left_s
