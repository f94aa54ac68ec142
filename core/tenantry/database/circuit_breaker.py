"""A breaker: remembers that a database is down, so that nobody waits to find out again.

A plain object with a clock; knows no database and starts nothing.
"""

import threading
import time
from collections.abc import Callable

FIRST_PAUSE_S = 0.25
"""Pause after the first failure: a connection that was refused by chance costs no more."""

MAX_PAUSE_S = 2.0
"""Pauses double up to this: with the 2 s that a look at a silent database takes, one that is back
is noticed within 5 s."""

TRIES_AT_ONCE = 2
"""Tries under way at once: each may hold a thread of the server until it times out."""

SLOW_S = 1.0
"""How old a try gets before it counts as a sign of failure: usual ones take 5 ms."""


class Breaker:
    """Whether something may be tried. Thread-safe.

    Closed, everybody may try, a few at once. A failure opens it; from then on one at a time may
    try, after a pause (a *probe*), until one succeeds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Condition()  # protects all below; notified when a try ends
        self._failures = 0
        self._retry_at = 0.0
        self._is_probing = False
        self._tries: list[float] = []  # when each that is under way began

    @property
    def pause_s(self) -> float | None:
        """Seconds after which it is worth trying; None when it is closed."""
        with self._lock:
            return self._pause_s()

    @property
    def is_open(self) -> bool:
        """Whether the last try failed."""
        return self._failures > 0

    def _pause_s(self) -> float | None:
        now = self._clock()
        if self._failures:
            return max(self._retry_at - now, 0.0)
        if self._tries and now - self._tries[0] >= SLOW_S:
            return SLOW_S
        return None

    def begin(self) -> float | None:
        """Begin a try, when few enough are under way; None, or the pause if it may not be."""
        with self._lock:
            while (pause_s := self._pause_s()) is None and len(self._tries) >= TRIES_AT_ONCE:
                self._lock.wait(max(self._tries[0] + SLOW_S - self._clock(), 0.001))
            if pause_s is None:
                self._tries.append(self._clock())
            return pause_s

    def begin_probe(self) -> bool:
        """Begin a probe, when it is time for one and none is under way; whether it may be."""
        with self._lock:
            if not self._failures or self._is_probing or self._clock() < self._retry_at:
                return False
            self._is_probing = True
            return True

    def end_probe(self) -> None:
        """End a probe, however it went: `succeed` or `fail` told that."""
        with self._lock:
            self._is_probing = False

    def succeed(self) -> bool:
        """End a try, a good one; return whether it was down before."""
        with self._lock:
            self._end_try()
            was_down = self._failures > 0
            self._failures = 0
            return was_down

    def fail(self) -> bool:
        """End a try, a failed one; return whether that is news."""
        with self._lock:
            self._end_try()
            self._failures += 1
            pause_s = min(FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 10), MAX_PAUSE_S)
            self._retry_at = self._clock() + pause_s
            return self._failures == 1

    def _end_try(self) -> None:
        if self._tries:  # a probe is none
            self._tries.pop(0)  # whichever it was: their times bound each other's
        self._lock.notify_all()
