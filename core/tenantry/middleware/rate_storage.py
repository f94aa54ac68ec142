"""Counts of rate limits in Redis, which several hosts can share, and which may be unavailable.

The storage approximates a sliding window with two fixed windows: it counts the requests of the
current window fully, and those of the previous window in proportion to its overlap with the sliding
window. The approximation needs two numbers per rate. The exact window of the `limits` library needs
one number per request: 30 MiB for a million requests per day.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from limits import RateLimitItem
from limits.storage.redis import RedisStorage

REDIS_TIMEOUT_S = 0.02
"""Seconds that a request waits for Redis, which usually answers in 1 ms. After a timeout, no
request waits for Redis until a probe succeeds."""

PROBE_TIMEOUT_S = 1.0
"""Seconds that a probe of an unavailable Redis may take. No request waits for a probe."""

FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 2.0
"""Maximum seconds between two probes of an unavailable Redis. Each failed probe doubles the pause.
The host uses Redis again within 3 s of its recovery."""

LOG_INTERVAL_S = 10.0
"""Minimum seconds between two log lines about a Redis that keeps failing and recovering."""

_logger = logging.getLogger(__name__)


class RateCount(NamedTuple):
    """The count of one rate for one request."""

    has_fit: bool
    """Whether the request fits the rate and was counted."""
    limit: int
    window_s: int
    remaining: int
    """Number of further requests that fit the rate now."""
    wait_s: float
    """Seconds until more requests fit the rate."""


class SharedStorage:
    """Counts in a Redis that several hosts can share. Thread-safe. `close()` ends the thread.

    After a timeout, requests are admitted without being counted, while a thread probes Redis until
    Redis responds.

    Args:
        url: `redis://…` or `rediss://…`.
        clock: returns monotonic seconds.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage = _redis(url, REDIS_TIMEOUT_S)
        self._probe = _redis(url, PROBE_TIMEOUT_S)
        self._clock = clock
        self._lock = threading.Lock()  # the lock protects `_is_lost` and `_thread`
        self._is_lost = False
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()
        self.unanswered_total = 0
        """Number of requests that were admitted without being counted. The number is approximate,
        because no lock protects it."""
        self._logged_at = -math.inf  # when `rates.storage_lost` was last logged
        self._logged_total = 0
        """The value of `unanswered_total` when `rates.storage_found` was last logged."""

    def hit(self, tenant: str, rates: tuple[RateLimitItem, ...]) -> list[RateCount] | None:
        """Count a request for each rate, up to the first rate that the request exceeds.

        Return all counts, or only the count of the exceeded rate. While Redis is unavailable,
        return None.
        """
        counts = []
        for rate in rates:
            count = self.acquire(rate.key_for(tenant), rate.amount, rate.get_expiry())
            if count is None or not count.has_fit:
                return None if count is None else [count]
            counts.append(count)
        return counts

    def acquire(self, key: str, limit: int, expiry_s: int) -> RateCount | None:
        """Count a request if it fits the limit. While Redis is unavailable, return None."""
        if self._is_lost:
            self.unanswered_total += 1
            return None
        try:
            has_fit = self._storage.acquire_sliding_window_entry(key, limit, expiry_s)
            found = self._storage.get_sliding_window(key, expiry_s)
            if not has_fit and _is_from_the_future(found, expiry_s):
                # The clock of the Redis machine was set back. Without `clear_sliding_window`, the
                # tenant would be over its rate until the clock has caught up.
                self._storage.clear_sliding_window(key, expiry_s)
                has_fit = self._storage.acquire_sliding_window_entry(key, limit, expiry_s)
                found = self._storage.get_sliding_window(key, expiry_s)
        except self._storage.base_exceptions as error:
            self._note_lost(error)
            self.unanswered_total += 1
            return None
        return _count(found, limit, expiry_s, has_fit=has_fit)

    def _note_lost(self, error: Exception) -> None:
        with self._lock:
            if self._is_lost or self._is_over.is_set():
                return
            self._is_lost = True
            reason = type(error).__name__
            is_logged = self._log_lost(reason)
            arguments = (reason, is_logged)
            self._thread = threading.Thread(
                target=self._look, args=arguments, name="tenantry-rates", daemon=True
            )
            self._thread.start()

    def _log_lost(self, reason: str) -> bool:
        """Log that Redis is unavailable, unless a recent log line says so."""
        now = self._clock()
        if now - self._logged_at < LOG_INTERVAL_S:
            return False
        self._logged_at = now
        _logger.error("rates.storage_lost", extra={"reason": reason})
        return True

    def _look(self, reason: str, is_logged: bool) -> None:
        """Probe Redis until Redis responds, on a thread of its own."""
        pause_s = FIRST_PAUSE_S
        while not self._is_over.wait(pause_s):
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
            if not self._is_found():
                is_logged = is_logged or self._log_lost(reason)
                continue
            passed = self.unanswered_total - self._logged_total
            self._is_lost = False
            if is_logged:
                self._logged_total += passed
                _logger.warning("rates.storage_found", extra={"passed_requests": passed})
            return

    def _is_found(self) -> bool:
        """Whether Redis answers fast enough to count each request."""
        try:
            # The probe writes, because even a full or read-only Redis would answer a ping. Only the
            # second write is timed, because the first one opens the connection.
            self._probe.incr("probe", 1)
            begun = time.monotonic()
            self._probe.incr("probe", 1)
        except self._probe.base_exceptions:
            return False
        return time.monotonic() - begun < REDIS_TIMEOUT_S

    def close(self) -> None:
        """End the thread and close the connections. Idempotent."""
        self._is_over.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()
        for storage in (self._storage, self._probe):
            storage.storage.close()


def _redis(url: str, timeout_s: float) -> RedisStorage:
    from redis.backoff import NoBackoff  # noqa: PLC0415 - an optional dependency
    from redis.retry import Retry  # noqa: PLC0415

    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),  # the default of redis-py is three retries with pauses
    }
    return RedisStorage(url, key_prefix="tenantry", **options)


def _count(
    found: tuple[int, float, int, float], limit: int, window_s: int, *, has_fit: bool
) -> RateCount:
    previous, previous_s, current, current_s = found
    left_s = max(current_s - window_s if current else float(window_s), 0.0)
    if has_fit:
        counted = int(previous * previous_s / window_s) + current
        return RateCount(True, limit, window_s, max(limit - counted, 0), left_s)
    room = limit - 1 - current
    if room >= 0 and previous:
        left_s = max(previous_s - (room + 1) * window_s / previous, 0.0)
    return RateCount(False, limit, window_s, 0, left_s)


def _is_from_the_future(found: tuple[int, float, int, float], expiry_s: int) -> bool:
    return found[1] > expiry_s + 1 or found[3] > 2 * expiry_s + 1
