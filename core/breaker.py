"""A breaker: remembers that a database is down, so that nobody waits to find out again.

A plain object with a clock; knows no database and starts nothing.
"""

import threading
import time
from collections.abc import Callable

FIRST_PAUSE_S = 0.25
"""Pause after the first failure: a connection that was refused by chance costs no more."""

MAX_PAUSE_S = 1.0
"""Pauses double up to this, so that a database that is back is noticed within 5 s, also when each
look at it takes the 2 s of a connect time-out."""


class Breaker:
    """Whether something may be tried. Thread-safe.

    Closed, everybody may try. A failure opens it; from then on one at a time may try, after a
    pause (a *probe*), until one succeeds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # protects all below
        self._failures = 0
        self._retry_at = 0.0
        self._is_probing = False

    @property
    def is_open(self) -> bool:
        """Whether the last try failed."""
        return self._failures > 0

    @property
    def retry_after_s(self) -> float:
        """Seconds until the next probe; 0 when it is due, or nothing is wrong."""
        return max(self._retry_at - self._clock(), 0.0) if self._failures else 0.0

    def take_probe(self) -> bool:
        """Whether the caller is to probe now; it then says how that went."""
        with self._lock:
            if not self._failures or self._is_probing or self._clock() < self._retry_at:
                return False
            self._is_probing = True
            return True

    def succeed(self) -> bool:
        """Note that a try succeeded; whether it was down before."""
        with self._lock:
            was_down = self._failures > 0
            self._failures = 0
            self._is_probing = False
            return was_down

    def fail(self) -> bool:
        """Note that a try failed; whether that is news."""
        with self._lock:
            self._is_probing = False
            self._failures += 1
            pause_s = min(FIRST_PAUSE_S * 2 ** (self._failures - 1), MAX_PAUSE_S)
            self._retry_at = self._clock() + pause_s
            return self._failures == 1
