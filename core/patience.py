"""Patience: how long a thread waits for a client in all, for a request and for its answer.

Knows sockets only.
A time-out of each read begins anew with each byte: eight clients that sent one a second held the
eight threads of a worker for as long as they liked.
"""

import errno
import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 30.0
"""How long a thread waits for its client in all, in each direction: nobody sends or takes nothing
for so long who is still there."""

LEAST_BYTES_PER_S = 1024
"""Each so many bytes earn another second: what a bad telephone line carries."""

NOTICED_S = 0.05
"""A write that took less did not wait for the client, but for its turn with the interpreter lock.
One that waits for a client takes longer: the system wakes it when a good part of its buffer is
free."""


class PatientSocket:
    """A client's socket while one request is served. For the thread that serves it.

    Args:
        raw: the socket; it gets `PATIENCE_S` as its time-out.
        clock: seconds.
    """

    __slots__ = ("_clock", "_receiving_s", "_sending_s", "raw", "received_bytes", "sent_bytes")

    def __init__(self, raw: Any, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.raw = raw
        self._clock = clock
        self.received_bytes = self.sent_bytes = 0
        self._receiving_s = self._sending_s = 0.0
        raw.settimeout(PATIENCE_S)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive at most `size` bytes.

        Raises:
            TimeoutError: the client sends too slowly.
        """
        raw = self.raw
        left_s = _left_s(self.received_bytes, self._receiving_s)
        timeout_s = raw.gettimeout()
        if timeout_s is None or left_s < timeout_s:
            raw.settimeout(left_s)
        begun = self._clock()
        try:
            data: bytes = raw.recv(size, flags)
        finally:
            self._receiving_s += self._clock() - begun
            raw.settimeout(timeout_s)
        self.received_bytes += len(data)
        return data

    def sendall(self, data: bytes, flags: int = 0) -> None:
        """Send it all.

        Raises:
            ConnectionResetError: the client takes it too slowly.
        """
        left: bytes | memoryview = data
        try:
            while left:
                size = self._send(left, flags)
                if size == len(left):
                    break
                left = memoryview(left)[size:]
        except TimeoutError as error:
            reason = "the client takes its answer too slowly"
            raise ConnectionResetError(errno.ECONNRESET, reason) from error

    def _send(self, data: bytes | memoryview, flags: int) -> int:
        if self._sending_s:
            self.raw.settimeout(_left_s(self.sent_bytes, self._sending_s))
        begun = self._clock()
        size: int = self.raw.send(data, flags)
        took_s = self._clock() - begun
        if took_s > NOTICED_S:
            self._sending_s += took_s
        self.sent_bytes += size
        return size


def _left_s(moved_bytes: int, waited_s: float) -> float:
    """Return how long it may still take.

    Raises:
        TimeoutError: it has taken too long.
    """
    left_s = PATIENCE_S + moved_bytes / LEAST_BYTES_PER_S - waited_s
    if left_s <= 0:
        raise TimeoutError("the client is too slow")
    return left_s
