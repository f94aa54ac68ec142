"""Remembers that a database server is down, so that requests fail without waiting.

The circuit breaker does not depend on a database, and starts no threads. Tenantry does not use the
library pybreaker, which has two disadvantages. First, pybreaker holds a lock while it calls the
guarded function, so a connection attempt that hangs would block all others. Second, pybreaker uses
a client's request as the next attempt, and not a separate probe.
"""

import threading
import time
from collections.abc import Callable

FIRST_PAUSE_S = 0.25
"""Seconds of pause after the first failure, which may have been accidental."""

MAX_PAUSE_S = 2.0
"""Maximum seconds of pause between two attempts.

The pause between two attempts doubles after each failure. A probe of a silent server takes another
2 s, so a recovered server is noticed within 5 s.
"""

MAX_ATTEMPTS = 2
"""Maximum number of concurrent connection attempts.

Each connection attempt may block a thread until a timeout.
"""

SLOW_S = 1.0
"""Seconds after which an unfinished attempt suggests a failure. A typical attempt takes 5 ms."""


class CircuitBreaker:
    """Decides whether a caller may try to connect to a server. Thread-safe.

    While the circuit breaker is closed, a few callers may try at the same time. A failure opens the
    circuit breaker. While the circuit breaker is open, one probe at a time may try after a pause. A
    successful probe closes the circuit breaker.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # The condition protects all attributes. Each attempt notifies the condition when it ends.
        self._lock = threading.Condition()
        self._failures = 0
        self._retry_at = 0.0
        self._is_probing = False
        self._attempts: list[float] = []  # start times of running attempts, oldest first

    @property
    def pause_s(self) -> float | None:
        """Seconds until the next attempt may start, or None if an attempt may start now."""
        with self._lock:
            return self._pause_s()

    @property
    def is_open(self) -> bool:
        """Whether the last attempt failed."""
        return self._failures > 0

    def begin(self) -> float | None:
        """Begin an attempt, or return the remaining pause if no attempt may begin.

        If too many attempts are running, this method waits for up to `SLOW_S`.
        """
        with self._lock:
            while (pause_s := self._pause_s()) is None and len(self._attempts) >= MAX_ATTEMPTS:
                self._lock.wait(max(self._attempts[0] + SLOW_S - self._clock(), 0.001))
            if pause_s is None:
                self._attempts.append(self._clock())
            return pause_s

    def begin_probe(self) -> bool:
        """Begin a probe if one is due and none is running. Return whether the probe may run."""
        with self._lock:
            if not self._failures or self._is_probing or self._clock() < self._retry_at:
                return False
            self._is_probing = True
            return True

    def end_probe(self) -> None:
        """End a probe whose result has been recorded by `succeed` or `fail`."""
        with self._lock:
            self._is_probing = False

    def succeed(self) -> bool:
        """Record a success, and return whether the circuit breaker was open."""
        with self._lock:
            self._end_attempt()
            was_open = self._failures > 0
            self._failures = 0
            return was_open

    def fail(self) -> bool:
        """Record a failure, and return whether the failure opened the circuit breaker."""
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
        if self._attempts:  # the list has no entry for a probe
            # Only the number of start times must be correct, so any of them can be removed.
            self._attempts.pop(0)
        self._lock.notify_all()
