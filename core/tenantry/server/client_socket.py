"""A client's socket with limits for the time that a thread waits for the client.

The limits apply to the whole request and to the whole response. With a separate timeout for each
read, eight clients that sent one byte a second held the eight threads of a worker forever.
"""

import errno
import select
import ssl
import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 30.0
"""Seconds that a thread waits for its client in total, in each direction."""

LEAST_BYTES_PER_S = 1024
"""Number of bytes for which a client gets another second, enough for a bad mobile connection."""

NOTICED_S = 0.05
"""Minimum seconds of a wait for sending that counts. In a shorter wait, the thread waited for the
interpreter lock, not for the client."""

HELD_BYTES = 65536
"""Maximum size of a first body chunk that is copied and sent together with the response head."""

_NOT_READY = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_HEAD = b"HTTP/1."  # the start of a response head
_INTERIM = b"1"  # the status class of interim responses
_BODILESS = (b"204", b"304")
_EMPTY = b"\r\ncontent-length: 0\r\n"


def _wait(raw: Any, event: int, seconds: float) -> bool:
    """Wait until a socket can be read or written; return whether the socket can be."""
    poll = select.poll()
    poll.register(raw, event)
    return bool(poll.poll(seconds * 1000))


class PatientSocket:
    """A client's socket for the thread that serves its current request.

    The raw socket never blocks, because the main loop also uses the raw socket. Changing the mode
    of the socket for each request would take two system calls, so `PatientSocket` waits with
    `poll`.

    Args:
        raw: the socket.
        clock: monotonic seconds.
        wait: waits until the socket can be read or written (`select.POLLIN`, `POLLOUT`) or the
            seconds have passed; returns whether the socket can be read or written.
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
        """Begin a request, and reset the time that the client has used.

        Args:
            holds_head: whether a response head is sent together with the start of its body.
        """
        self._holds_head = holds_head
        self.received_bytes = self.sent_bytes = 0
        self._receiving_s = self._sending_s = 0.0
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def gettimeout(self) -> float | None:
        """Return the seconds that a single wait may take; None if only the total limit applies."""
        return self._timeout_s

    def settimeout(self, seconds: float | None) -> None:
        """Set the seconds that a single wait may take."""
        self._timeout_s = seconds

    def setblocking(self, flag: bool) -> None:
        """Set whether each call waits for the client."""
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
        """Send all of `data`, like `sendall`; return the size of `data`."""
        self.sendall(data, flags)
        return len(data)

    def sendall(self, data: bytes, flags: int = 0) -> None:
        """Send all of `data`, but hold a response head until the first body bytes, or `flush`.

        Head and first body bytes go out in one packet and one system call, as PEP 3333 allows. A
        head without a body goes out at once, because the app can have more work to do.

        Raises:
            ConnectionResetError: the client reads too slowly.
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
        """Send a response head that waits for its body.

        Raises:
            ConnectionResetError: the client reads too slowly.
        """
        if self._held:
            data, self._held = self._held, b""
            self._send(data, 0)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a file with `os.sendfile`, with a limit for each wait, but no total limit."""
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
            reason = "the client reads its response too slowly"
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
        """Wait until the client has sent bytes or accepts bytes.

        Raises:
            TimeoutError: the client did not act in time.
        """
        if isinstance(why, ssl.SSLWantReadError):
            event = select.POLLIN
        elif isinstance(why, ssl.SSLWantWriteError):
            event = select.POLLOUT
        timeout_s = left_s if self._timeout_s is None else min(left_s, self._timeout_s)
        if not self._wait(self.raw, event, timeout_s):
            raise TimeoutError("the client is too slow")


def _announces_body(data: bytes) -> bool:
    """Whether `data` is the head of a final response with a body."""
    if not data.startswith(_HEAD) or data[9:10] == _INTERIM or data[9:12] in _BODILESS:
        return False
    return _EMPTY not in data.lower()


def _left_s(moved_bytes: int, waited_s: float) -> float:
    """Return the seconds that a thread may still wait for the client.

    Raises:
        TimeoutError: no seconds are left.
    """
    left_s = PATIENCE_S + moved_bytes / LEAST_BYTES_PER_S - waited_s
    if left_s <= 0:
        raise TimeoutError("the client is too slow")
    return left_s
