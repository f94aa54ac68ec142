"""A circuit breaker: remembers that a server is down, so that requests fail without waiting.

The circuit breaker does not depend on a database and starts no threads. Tenantry does not use
pybreaker for two reasons. pybreaker holds a lock during a call of the guarded function, so a
connection attempt that hangs would block every other attempt. pybreaker also tries again in a
client's request instead of in a probe.
"""

import threading
import time
from collections.abc import Callable

FIRST_PAUSE_S = 0.25
"""Pause after the first failure: the cost of a single connection that is refused by chance."""

MAX_PAUSE_S = 2.0
"""Maximum pause between attempts. The pause doubles after each failure, up to the maximum. A probe
of a silent server takes another 2 s, so the circuit breaker notices a recovered server within 5
s."""

MAX_ATTEMPTS = 2
"""Maximum number of connection attempts in progress. Each attempt may block a thread until a
timeout."""

SLOW_S = 1.0
"""Age from which an attempt counts as a sign of failure. A usual attempt takes 5 ms."""


class CircuitBreaker:
    """Decides whether a caller may try to connect. Thread-safe.

    While the circuit breaker is closed, a few callers at once may try. A failure opens the circuit
    breaker. While the circuit breaker is open, only one probe at a time may try, after a pause. A
    successful probe closes the circuit breaker.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # The condition protects the attributes of the breaker, and is notified when an attempt
        # ends.
        self._lock = threading.Condition()
        self._failures = 0
        self._retry_at = 0.0
        self._is_probing = False
        self._attempts: list[float] = []  # start times of the attempts in progress, oldest first

    @property
    def pause_s(self) -> float | None:
        """Seconds until the next connection attempt may start; None if an attempt may start now."""
        with self._lock:
            return self._pause_s()

    @property
    def is_open(self) -> bool:
        """Whether the last attempt failed."""
        return self._failures > 0

    def begin(self) -> float | None:
        """Begin an attempt and return None, or return the pause if no attempt may start.

        `begin` waits up to `SLOW_S` while too many attempts are in progress.
        """
        with self._lock:
            while (pause_s := self._pause_s()) is None and len(self._attempts) >= MAX_ATTEMPTS:
                self._lock.wait(max(self._attempts[0] + SLOW_S - self._clock(), 0.001))
            if pause_s is None:
                self._attempts.append(self._clock())
            return pause_s

    def begin_probe(self) -> bool:
        """Begin a probe if due and if no probe is in progress; return whether the probe may run."""
        with self._lock:
            if not self._failures or self._is_probing or self._clock() < self._retry_at:
                return False
            self._is_probing = True
            return True

    def end_probe(self) -> None:
        """End a probe. `succeed` or `fail` has recorded the probe's result."""
        with self._lock:
            self._is_probing = False

    def succeed(self) -> bool:
        """End a successful attempt or probe; return whether the circuit breaker was open."""
        with self._lock:
            self._end_attempt()
            was_open = self._failures > 0
            self._failures = 0
            return was_open

    def fail(self) -> bool:
        """End an attempt that failed; return whether the failure opened the breaker."""
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
        if self._attempts:  # The list of attempts does not contain a probe.
            # The oldest start time may belong to another attempt, but limits the ages equally well.
            self._attempts.pop(0)
        self._lock.notify_all()
