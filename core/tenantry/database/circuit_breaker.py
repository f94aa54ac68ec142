"""A circuit breaker: remembers that a server is down, so that no request waits to find out again.

It knows no database and starts no threads. We do not use pybreaker: it holds its lock while it
calls the guarded function, so one connection attempt that hangs would block every other one, and
it tries again in a client's request instead of in a probe.
"""

import threading
import time
from collections.abc import Callable

FIRST_PAUSE_S = 0.25
"""Pause after the first failure. A single connection refused by chance costs no more than this."""

MAX_PAUSE_S = 2.0
"""Pauses double up to this. A probe of a silent server takes another 2 s, so a server that is back
is noticed within 5 s."""

MAX_ATTEMPTS = 2
"""Attempts in progress at once. Each may block a thread of the server until it times out."""

SLOW_S = 1.0
"""Age from which an attempt counts as a sign of failure. A usual one takes 5 ms."""


class CircuitBreaker:
    """Decides whether something may be tried. Thread-safe.

    While it is closed, a few callers at once may try. A failure opens it. From then on, only a
    probe may try, one at a time and after a pause, until one succeeds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Protects everything below. Notified when an attempt ends.
        self._lock = threading.Condition()
        self._failures = 0
        self._retry_at = 0.0
        self._is_probing = False
        self._attempts: list[float] = []  # start of each one in progress, oldest first

    @property
    def pause_s(self) -> float | None:
        """Seconds until the next attempt makes sense; None if one may start now."""
        with self._lock:
            return self._pause_s()

    @property
    def is_open(self) -> bool:
        """Whether the last attempt failed."""
        return self._failures > 0

    def begin(self) -> float | None:
        """Begin an attempt and return None, or return the pause if none may start.

        Waits up to `SLOW_S` while too many attempts are in progress.
        """
        with self._lock:
            while (pause_s := self._pause_s()) is None and len(self._attempts) >= MAX_ATTEMPTS:
                self._lock.wait(max(self._attempts[0] + SLOW_S - self._clock(), 0.001))
            if pause_s is None:
                self._attempts.append(self._clock())
            return pause_s

    def begin_probe(self) -> bool:
        """Begin a probe if one is due and none is in progress; return whether it may run."""
        with self._lock:
            if not self._failures or self._is_probing or self._clock() < self._retry_at:
                return False
            self._is_probing = True
            return True

    def end_probe(self) -> None:
        """End a probe. Its result is what `succeed` or `fail` recorded."""
        with self._lock:
            self._is_probing = False

    def succeed(self) -> bool:
        """End an attempt that succeeded; return whether the breaker was open."""
        with self._lock:
            self._end_attempt()
            was_open = self._failures > 0
            self._failures = 0
            return was_open

    def fail(self) -> bool:
        """End an attempt that failed; return whether it opened the breaker."""
        with self._lock:
            self._end_attempt()
            self._failures += 1
            pause_s = FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 10)
            self._retry_at = self._clock() + min(pause_s, MAX_PAUSE_S)
            return self._failures == 1

    def _pause_s(self) -> float | None:
        now = self._clock()
        if self._failures:
            return max(self._retry_at - now, 0.0)
        if self._attempts and now - self._attempts[0] >= SLOW_S:
            return SLOW_S
        return None

    def _end_attempt(self) -> None:
        if self._attempts:  # a probe is not in the list
            self._attempts.pop(0)  # not necessarily this one, but as good a bound on their ages
        self._lock.notify_all()
